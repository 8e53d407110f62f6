//! Reading the authority's answer.

use crate::identity::{Signed, roots};

/// A chain longer than this is not one.
const MAX_CHAIN: usize = 10;

/// The elements of `cert_chain`: leaf, intermediates, and as the last one the roots. Each is PEM with one certificate or
/// more. Roots that are in the chain as well are left out of it: a peer has them, or does not trust them.
///
/// # Errors
/// What is wrong with them.
pub fn signed(elements: &[String]) -> Result<Signed, String> {
    let Some((last, chain)) = elements.split_last().filter(|(_, chain)| !chain.is_empty()) else {
        return Err(format!(
            "the chain has {} elements; expected a leaf and, as the last one, the roots",
            elements.len()
        ));
    };
    let roots =
        roots::certificates(last.as_bytes()).map_err(|error| format!("the roots: {error}"))?;
    let mut certificates = Vec::new();
    for (at, element) in chain.iter().enumerate() {
        let found = roots::certificates(element.as_bytes())
            .map_err(|error| format!("element {} of the chain: {error}", at + 1))?;
        for certificate in found {
            if certificates.is_empty() || !roots.contains(&certificate) {
                certificates.push(certificate);
            }
        }
        if certificates.len() > MAX_CHAIN {
            return Err(format!("the chain has more than {MAX_CHAIN} certificates"));
        }
    }
    Ok(Signed {
        chain: certificates,
        roots,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.self_signed(&key).unwrap().pem()
    }

    fn answer(elements: &[&str]) -> Result<(usize, usize), String> {
        let elements: Vec<String> = elements.iter().map(ToString::to_string).collect();
        signed(&elements).map(|signed| (signed.chain.len(), signed.roots.len()))
    }

    #[test]
    fn certificates_are_counted_not_elements() {
        let (leaf, middle, root, next) =
            (certificate(), certificate(), certificate(), certificate());
        assert_eq!(answer(&[&leaf, &root]), Ok((1, 1)));
        assert_eq!(answer(&[&leaf, &middle, &root]), Ok((2, 1)));
        let both = format!("{leaf}{middle}");
        assert_eq!(answer(&[&both, &format!("{root}\n{next}")]), Ok((2, 2)));
        // Istio's plugged-in chain ends with the root.
        assert_eq!(answer(&[&leaf, &middle, &root, &root]), Ok((2, 1)));
    }

    #[test]
    fn rubbish_is_named() {
        let good = certificate();
        let cut = &good[..good.len() / 2];
        let long: Vec<String> = (0..12).map(|_| certificate()).collect();
        let mut many: Vec<&str> = long.iter().map(String::as_str).collect();
        many.push(&good);
        for (elements, why) in [
            (&[][..], "the chain has 0 elements"),
            (&[&*good], "the chain has 1 elements"),
            (
                &["", &good],
                "element 1 of the chain: it holds no certificate",
            ),
            (&[&good, ""], "the roots: it holds no certificate"),
            (
                &[&good, cut, &good],
                "element 2 of the chain: it is not PEM",
            ),
            (&many, "the chain has more than 10 certificates"),
        ] {
            let error = answer(elements).unwrap_err();
            assert!(error.starts_with(why), "{error}");
        }
    }
}
