//! The tables of docs/parameters.md, from the list of parameters that the volumes' own room keeps. The text around them is
//! written by people. Must not know: where the page lies.

use pool::layout::known::{Allowed, Parameter, Unsaid, parameters};

use crate::Quantity;

/// Before a table; what follows it up to the first empty line is generated.
const MARK: &str = "<!-- Generated from the crate pool: cargo run -p api --example crds -->\n";
const HEAD: &str = "| key | values | default | means |\n|---|---|---|---|\n";

/// The page has not the places for both tables.
#[derive(Debug, thiserror::Error)]
#[error(
    "the page has {0} places for generated tables, 2 are expected: first for volumes, then for what may change"
)]
pub struct WrongPlaces(usize);

/// The page, with its tables made anew.
///
/// # Errors
/// See [`WrongPlaces`].
pub fn fill(page: &str) -> Result<String, WrongPlaces> {
    let parts: Vec<_> = page.split(MARK).collect();
    let [head, first, second] = parts[..] else { return Err(WrongPlaces(parts.len() - 1)) };
    let text = |part: &str| part.split_once("\n\n").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
    let (volumes, limits) = (table(false), table(true));
    Ok(format!("{head}{MARK}{volumes}\n{}{MARK}{limits}\n{}", text(first), text(second)))
}

/// The parameters that may change, or the others.
fn table(mutable: bool) -> String {
    let rows = parameters().into_iter().filter(|p| p.mutable == mutable);
    rows.fold(HEAD.to_owned(), |table, p| table + &row(&p))
}

fn row(p: &Parameter) -> String {
    let with = match p.layouts {
        [] => String::new(),
        l => format!(" (with {})", code(l).join(" and ")),
    };
    let values = match &p.allowed {
        Allowed::Words(w) => code(w).join(", "),
        Allowed::Numbers(min, max) => format!("{min} to {max}"),
        Allowed::PowersOfTwo(min, max) => {
            format!("power of two, {} to {}", Quantity::new(*min), Quantity::new(*max))
        }
        Allowed::Such { says, .. } => (*says).to_owned(),
    };
    let unsaid = match &p.unsaid {
        Unsaid::Word(w) => format!("`{w}`"),
        Unsaid::Number(n) => n.to_string(),
        Unsaid::Bytes(b) => format!("`{}`", Quantity::new(*b)),
        Unsaid::Says(s) => (*s).to_owned(),
    };
    format!("| {}{with} | {values} | {unsaid} | {} |\n", code(p.keys).join(", "), p.means)
}

fn code(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| format!("`{w}`")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_made_anew_and_text_stays() {
        let page = format!("# A\n\n{MARK}| old |\n| row |\n\nB.\n\nC.\n\n{MARK}\n\nD.\n");
        let filled = fill(&page).unwrap();
        assert!(filled.starts_with("# A\n\n<!--") && filled.ends_with("\n\nD.\n"), "{filled}");
        assert!(filled.contains("|\n\nB.\n\nC.\n\n<!--") && !filled.contains("old"), "{filled}");
        assert!(
            filled.contains(
                "| `stripeChunk` (with `striped` and `auto`) | power of two, 4Ki to 4Mi | `64Ki` |"
            )
        );
        assert_eq!(fill(&filled).unwrap(), filled);
        assert!(fill("# A\n").is_err());
    }
}
