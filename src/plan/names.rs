//! Names that a caller may have meant.

/// How many names a message lists.
const MOST: usize = 12;

/// Some of the names as a list, those first that are most like the wanted one.
pub(super) fn listed<'a>(names: impl Iterator<Item = &'a str>, wanted: &str) -> String {
    let mut names: Vec<(usize, &str)> = names.map(|name| (distance(name, wanted), name)).collect();
    if names.is_empty() {
        return "none".to_owned();
    }
    // Stable: equally like ones stay in their order.
    names.sort_by_key(|(distance, _)| *distance);
    let shown = names.iter().take(MOST).map(|(_, name)| format!("'{name}'"));
    let shown = shown.collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MOST) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// How many letters must be put in, left out or exchanged to make one of the other.
fn distance(one: &str, other: &str) -> usize {
    let other = other.as_bytes();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let exchanged = corner + usize::from(a != *b);
            corner = row[j + 1];
            row[j + 1] = exchanged.min(row[j] + 1).min(corner + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (one, other, want) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("kitten", "sitting", 3),
            ("weight_hh_l0", "weight_ih_l0", 1),
        ] {
            assert_eq!(distance(one, other), want);
            assert_eq!(distance(other, one), want);
        }
    }

    #[test]
    fn the_closest_come_first_and_the_rest_is_counted() {
        let names: Vec<String> = (0..20).map(|n| format!("weight_hh_l{n}")).collect();
        let all = || names.iter().map(String::as_str);
        assert!(listed(all(), "weight_hh_l_17").starts_with("'weight_hh_l17', "));
        assert!(listed(all(), "x").ends_with(" and 8 more"));
        assert_eq!(
            listed(all().take(2), "l1"),
            "'weight_hh_l1', 'weight_hh_l0'"
        );
        assert_eq!(listed(all().take(0), "x"), "none");
    }
}
