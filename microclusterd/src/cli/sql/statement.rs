//! Tells whether what was typed so far is a whole statement.

/// Whether the text ends with the semicolon that ends its last statement: not one in a string, in
/// a comment, or inside a trigger.
pub(super) fn is_complete(text: &str) -> bool {
    let mut words = Vec::new();
    let mut complete = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (token, after) = match c {
            '\'' | '"' | '`' => match quoted(rest, c) {
                Some(length) => rest.split_at(length),
                None => return false,
            },
            '[' => match rest.find(']') {
                Some(end) => rest.split_at(end + 1),
                None => return false,
            },
            '-' if rest.starts_with("--") => rest.split_at(rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("/*") => match rest[2..].find("*/") {
                Some(end) => rest.split_at(end + 4),
                None => return false,
            },
            c if is_word(c) => rest.split_at(rest.find(|c| !is_word(c)).unwrap_or(rest.len())),
            c => rest.split_at(c.len_utf8()),
        };
        rest = after;
        let comment = token.starts_with("--") || token.starts_with("/*");
        if comment || token.chars().all(char::is_whitespace) {
            continue;
        }
        if token != ";" {
            words.push(token.to_ascii_uppercase());
            complete = false;
        } else if !in_trigger(&words) {
            words.clear();
            complete = true;
        }
    }
    complete
}

/// Whether these words are the beginning of a trigger that has not reached its `END`.
fn in_trigger(words: &[String]) -> bool {
    let mut beginning = words.iter().map(String::as_str).skip_while(|word| *word == "EXPLAIN");
    let create = beginning.next() == Some("CREATE");
    let trigger = beginning.find(|word| !matches!(*word, "TEMP" | "TEMPORARY")) == Some("TRIGGER");
    create && trigger && words.last().is_none_or(|word| word != "END")
}

/// Bytes of the quoted text that a string begins with; two quotes in it stand for one.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut from = 1;
    loop {
        from += text[from..].find(quote)? + 1;
        if !text[from..].starts_with(quote) {
            return Some(from);
        }
        from += 1;
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_statements() {
        for text in [
            "SELECT 1;",
            "SELECT 1 ; ",
            "SELECT ';';",
            "SELECT 'it''s';",
            "SELECT \";\", `;`, [;];",
            "SELECT 1; -- done",
            "SELECT 1; /* done */",
            ";",
            "SELECT 'ä' AS ö;",
            "CREATE TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM b; END;",
            "create temp trigger t after insert on a begin delete from b; end;",
            "CREATE TABLE trigger_log(x); INSERT INTO trigger_log VALUES (1);",
        ] {
            assert!(is_complete(text), "{text}");
        }
    }

    #[test]
    fn statements_that_go_on() {
        for text in [
            "",
            "SELECT 1",
            "SELECT ';",
            "SELECT 'it''s;",
            "SELECT [a;",
            "SELECT 1 -- ;",
            "SELECT 1 /* ;",
            "SELECT 1; SELECT 2",
            "CREATE TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM b;",
        ] {
            assert!(!is_complete(text), "{text}");
        }
    }
}
