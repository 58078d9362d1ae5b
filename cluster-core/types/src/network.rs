//! Networks that containers may reach.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::{Error, Result};

/// Networks that one node opens; each is a rule that every packet of a container is compared with.
const OPEN_MAX: usize = 64;

/// Reads the networks that an operator opens.
///
/// # Errors
///
/// One is not like `10.1.0.0/16`, or there are more than a node keeps.
pub fn parse_open(texts: &[String]) -> Result<Vec<IpNet>> {
    if texts.len() > OPEN_MAX {
        let count = texts.len();
        return Err(Error::invalid(format!("{count} networks are opened, and at most {OPEN_MAX} are kept")));
    }
    let parse = |text: &String| {
        let whole = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        whole.map(|net| net.trunc()).map_err(|_| {
            Error::invalid(format!("\"{}\" is not a network", crate::text::shown(text)))
                .remedy("write networks like 10.1.0.0/16, fd12::/16 or 10.1.2.3")
        })
    };
    texts.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_checked_and_bounded() {
        for bad in ["", "10.0.0.0/33", "all", "example.com"] {
            assert!(parse_open(&[bad.into()]).is_err(), "{bad}");
        }
        assert!(parse_open(&vec!["10.0.0.0/8".to_owned(); 65]).is_err());
        let open = parse_open(&["10.1.2.3/16".into(), "192.168.7.7".into()]).unwrap();
        assert_eq!(open, ["10.1.0.0/16", "192.168.7.7/32"].map(|text| text.parse().unwrap()));
    }
}
