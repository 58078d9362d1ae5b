//! Amounts and times as agents state them: `500m`, `1Gi`, `10m`.

use aegis_types::{
    error::{Error, Result},
    text::shown,
};
use serde_json::Value;

/// Smallest whole number without a unit that counts as millicores, as in the published format. No agent asks for as many
/// cores.
const MILLICORES_FROM: f64 = 100.0;

/// Cores: `0.5`, `2`, `"500m"`, and `500` as the published format has it.
pub fn cores(path: &str, value: &Value) -> Result<f64> {
    let wrong = || {
        Error::invalid(format!("{path}: {} is no amount of cpu", of(value))).remedy(
            "write 500m, or cores like 0.5 and 2; whole numbers from 100 on are thousandths of a core",
        )
    };
    if let Some(number) = value.as_f64() {
        return Ok(if number >= MILLICORES_FROM { number / 1000.0 } else { number });
    }
    let text = value.as_str().ok_or_else(wrong)?.trim();
    match text.strip_suffix('m') {
        Some(millicores) => millicores.parse::<u32>().map(|number| f64::from(number) / 1000.0),
        None => return cores_of_text(text).ok_or_else(wrong),
    }
    .map_err(|_| wrong())
}

fn cores_of_text(text: &str) -> Option<f64> {
    let number = plain_number(text)?;
    Some(if number >= MILLICORES_FROM { number / 1000.0 } else { number })
}

/// Digits and a point: neither `inf` nor `1e9`.
fn plain_number(text: &str) -> Option<f64> {
    let plain = |byte: u8| byte.is_ascii_digit() || byte == b'.';
    text.bytes().all(plain).then(|| text.parse().ok()).flatten()
}

/// MiB, rounded up: `512Mi`, `1Gi`, `2G`, and bytes without a unit.
pub fn memory_mb(path: &str, value: &Value) -> Result<u32> {
    const MIB: u64 = 1024 * 1024;
    let wrong = || {
        Error::invalid(format!("{path}: {} is no amount of memory", of(value)))
            .remedy("write it like 512Mi or 1Gi; without a unit it is in bytes")
    };
    let bytes = match value.as_u64() {
        Some(bytes) => bytes,
        None => {
            let text = value.as_str().ok_or_else(wrong)?.trim();
            let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let unit: u64 = match &text[digits.len()..] {
                "" => 1,
                "Ki" => 1024,
                "Mi" => MIB,
                "Gi" => 1024 * MIB,
                "K" | "k" => 1_000,
                "M" => 1_000_000,
                "G" => 1_000_000_000,
                _ => return Err(wrong()),
            };
            digits.parse::<u64>().ok().and_then(|count| count.checked_mul(unit)).ok_or_else(wrong)?
        }
    };
    u32::try_from(bytes.div_ceil(MIB)).map_err(|_| wrong())
}

/// Seconds: `300`, `"300s"`, `"10m"`, `"1h"`.
pub fn seconds(path: &str, value: &Value) -> Result<u64> {
    let wrong = || {
        Error::invalid(format!("{path}: {} is no time", of(value)))
            .remedy("write it like 300s, 10m or 1h; without a unit it is in seconds")
    };
    if let Some(seconds) = value.as_u64() {
        return Ok(seconds);
    }
    let text = value.as_str().ok_or_else(wrong)?.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    digits.parse::<u64>().ok().and_then(|count| count.checked_mul(unit)).ok_or_else(wrong)
}

fn of(value: &Value) -> String {
    shown(&value.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cpu_is_in_cores_or_thousandths() {
        for (value, expected) in [
            (json!(0.5), 0.5),
            (json!(2), 2.0),
            (json!("2"), 2.0),
            (json!("500m"), 0.5),
            (json!(500), 0.5),
            (json!("1000"), 1.0),
        ] {
            assert!((cores("cpu", &value).unwrap() - expected).abs() < 1e-9, "{value}");
        }
        for bad in
            [json!("m"), json!("-1"), json!("inf"), json!("1e9"), json!("2 cores"), json!([1]), json!("")]
        {
            assert!(cores("spec.cpu", &bad).unwrap_err().message().starts_with("spec.cpu: "), "{bad}");
        }
    }

    #[test]
    fn memory_is_rounded_up_to_whole_mib() {
        for (value, expected) in [
            (json!("512Mi"), 512),
            (json!("1Gi"), 1024),
            (json!("1Ki"), 1),
            (json!("1G"), 954),
            (json!(268_435_456), 256),
            (json!("1048577"), 2),
        ] {
            assert_eq!(memory_mb("memory", &value).unwrap(), expected, "{value}");
        }
        for bad in [json!("1Gib"), json!("Mi"), json!("1.5Gi"), json!(-1), json!("99999999999999Gi")] {
            assert!(memory_mb("memory", &bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_units() {
        for (value, expected) in
            [(json!("300s"), 300), (json!("10m"), 600), (json!("1h"), 3600), (json!(5), 5)]
        {
            assert_eq!(seconds("timeout", &value).unwrap(), expected, "{value}");
        }
        for bad in [json!("1d"), json!("s"), json!(1.5), json!("99999999999999999999"), json!(null)] {
            assert!(seconds("timeout", &bad).is_err(), "{bad}");
        }
    }
}
