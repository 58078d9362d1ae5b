//! Pages of a list, by count and by size, and the cursors that join them.

use serde::Serialize;

use super::arguments::cursor_of;

/// A page ends early where a whole one would be too much for a model at once.
const PAGE_BYTES_MAX: usize = 18 * 1024;

/// The entries that fit, and the cursor when some did not. One always does.
pub fn fit<T: Serialize>(mut items: Vec<T>, id: impl Fn(&T) -> &str) -> (Vec<T>, Option<String>) {
    let mut left = PAGE_BYTES_MAX;
    let fitting = items
        .iter()
        .take_while(|item| {
            let size = serde_json::to_string(item).map_or(0, |text| text.len());
            let fits = size <= left;
            left = left.saturating_sub(size);
            fits
        })
        .count()
        .max(1);
    if fitting >= items.len() {
        return (items, None);
    }
    items.truncate(fitting);
    let next = items.last().map(|last| cursor_of(id(last)));
    (items, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::arguments::cursor;

    #[test]
    fn a_page_is_cut_to_what_a_model_takes_at_once() {
        let items: Vec<String> = (0..1000).map(|n| format!("{n:0100}")).collect();
        let (fitting, next) = fit(items.clone(), String::as_str);
        assert!(fitting.len() < items.len());
        assert!(fitting.iter().map(String::len).sum::<usize>() <= PAGE_BYTES_MAX);
        assert_eq!(&cursor(&next.unwrap()).unwrap(), fitting.last().unwrap());
        assert!(fit(items[..3].to_vec(), String::as_str).1.is_none());
        assert_eq!(fit(vec!["x".repeat(50_000)], String::as_str).0.len(), 1);
    }
}
