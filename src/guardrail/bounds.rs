//! How deep a policy may be. Cedar reads, validates and drops expressions by recursion: what is too deep for the stack ends
//! the process, and what is nearly so passes its validator unlooked at. So it is refused before Cedar sees it.

/// Most brackets inside each other.
const DEPTH_MAX: usize = 32;

/// Most operators, accesses and conditions of one policy: each can be a level of its expression.
const OPERATORS_MAX: usize = 256;

/// Looks at the text only: strings and comments count for nothing, whatever is in them.
///
/// # Errors
/// A sentence naming the line and the bound.
pub(crate) fn check(text: &str) -> Result<(), String> {
    let mut bytes = text.bytes().enumerate().peekable();
    let (mut line, mut depth, mut operators) = (1_usize, 0_usize, 0_usize);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\n' => line += 1,
            b'"' => {
                while let Some((_, inside)) = bytes.next() {
                    match inside {
                        b'"' => break,
                        b'\\' => drop(bytes.next()),
                        b'\n' => line += 1,
                        _ => {}
                    }
                }
            }
            b'/' if bytes.peek().is_some_and(|(_, next)| *next == b'/') => {
                while bytes.next_if(|(_, inside)| *inside != b'\n').is_some() {}
            }
            b'(' | b'{' => depth += 1,
            b'[' => (depth, operators) = (depth + 1, operators + 1),
            b')' | b'}' | b']' => depth = depth.saturating_sub(1),
            // Written twice, it is one.
            b'&' | b'|' => {
                bytes.next_if(|(_, next)| *next == byte);
                operators += 1;
            }
            b'.' | b'+' | b'-' | b'*' | b'!' => operators += 1,
            b';' => operators = 0,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                while bytes.next_if(|(_, inside)| inside.is_ascii_alphanumeric() || *inside == b'_').is_some() {}
                let end = bytes.peek().map_or(text.len(), |(end, _)| *end);
                operators += usize::from(matches!(&text.as_bytes()[at..end], b"if" | b"when" | b"unless"));
            }
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Err(format!("spec.cedar, line {line}: more than {DEPTH_MAX} brackets inside each other"));
        }
        if operators > OPERATORS_MAX {
            return Err(format!(
                "spec.cedar, line {line}: one policy with more than {OPERATORS_MAX} operators; make several of it, or \
                 name values in a set"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_and_operators_are_bounded_and_what_is_no_syntax_is_not_counted() {
        let many = |text: &str| text.repeat(1_000);
        for good in [
            String::new(),
            format!("\"{}\"", many("(")),
            format!("\"\\\"{}\"", many("(")),
            format!("// {}\n", many("(")),
            format!("\"{}", many("(")),
            many("forbid(principal, action, resource) when { context.a.b == 1 };\n"),
            "Leasehold::Action::\"a\"".repeat(300),
            format!("[{}]", many("1,")),
            "(".repeat(32),
            "a.".repeat(256),
            "é".repeat(10),
        ] {
            assert_eq!(check(&good), Ok(()), "{}", &good[..good.len().min(80)]);
        }
        for (bad, word) in [
            ("(".repeat(33), "line 1: more than 32 brackets"),
            (format!("\n\n{}", "[{(".repeat(11)), "line 3: more than 32 brackets"),
            (format!("// \"\n{}", many("(")), "line 2"),
            (format!("\"//\" {}", many("(")), "brackets"),
            (many("a || "), "more than 256 operators"),
            (many("a."), "more than 256 operators"),
            (many("if a then b else "), "more than 256 operators"),
            (many("when { true }"), "more than 256 operators"),
            (many("a[1]"), "more than 256 operators"),
            (many("- -"), "more than 256 operators"),
        ] {
            let error = check(&bad).unwrap_err();
            assert!(error.contains(word), "`{word}` is not in {error}");
        }
    }
}
