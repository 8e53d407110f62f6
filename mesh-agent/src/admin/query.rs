//! Query strings: `a=b&c=d`, percent-encoded.

/// The pairs of a query, decoded. What is not UTF-8 after decoding becomes U+FFFD.
pub fn parse(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

/// The inverse of [`parse`]; empty for no pairs.
pub fn build<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut query = String::new();
    for (key, value) in pairs {
        query.push(if query.is_empty() { '?' } else { '&' });
        encode(key, &mut query);
        query.push('=');
        encode(value, &mut query);
    }
    query
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = |b: u8| char::from(b).to_digit(16);
        match (first, after) {
            (b'%', [high, low, tail @ ..]) => {
                if let (Some(high), Some(low)) = (hex(*high), hex(*low)) {
                    bytes.push((high * 16 + low) as u8);
                    rest = tail;
                } else {
                    bytes.push(b'%');
                    rest = after;
                }
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for nibble in [byte >> 4, byte & 15] {
                out.push(
                    char::from_digit(u32::from(nibble), 16).map_or('0', |c| c.to_ascii_uppercase()),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_built_is_parsed(pairs in proptest::collection::vec((".{1,8}", ".{0,8}"), 0..4)) {
            let query = super::build(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())));
            let parsed = super::parse(query.strip_prefix('?').unwrap_or(&query));
            prop_assert_eq!(parsed, pairs);
        }

        #[test]
        fn any_text_is_taken(text in ".*") {
            super::parse(&text);
        }
    }
}
