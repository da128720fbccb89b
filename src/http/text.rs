//! Words from strangers, made fit for a log line.

/// At most `chars_max` characters of the text; control characters (line breaks too) become `?`.
#[must_use]
pub fn printable(text: &str, chars_max: usize) -> String {
    let mut chars = text.chars();
    let mut out: String = chars
        .by_ref()
        .take(chars_max)
        .map(|c| if is_plain(c) { c } else { '?' })
        .collect();
    if chars.next().is_some() {
        out.push('…');
    }
    out
}

/// Not a control character, nor one that turns the direction of the text around.
fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_cannot_break_the_line() {
        assert_eq!(printable("plain — text", 100), "plain — text");
        assert_eq!(printable("a\nb\u{1b}[31m\u{202e}c\u{0}", 100), "a?b?[31m?c?");
        assert_eq!(printable("abcdef", 3), "abc…");
        assert_eq!(printable("abc", 3), "abc");
        assert_eq!(printable("äöü", 2), "äö…");
    }
}
