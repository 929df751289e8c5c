//! Files that the configuration names, read once to see that they are what they claim.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::FromDer;

/// No file that is read whole may be larger.
const BYTES_MAX: u64 = 16 << 20;

/// The text of a small file.
pub(super) fn text(path: &Path) -> Result<String, String> {
    String::from_utf8(bytes(path)?).map_err(|_| format!("`{}` is not UTF-8 text", path.display()))
}

/// The bytes of a small file.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let unreadable = |e: std::io::Error| format!("`{shown}` cannot be read: {}", lower(&e));
    // A FIFO would stop us here for ever.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(format!("`{shown}` is not a file"));
    }
    let mut content = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(BYTES_MAX + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > BYTES_MAX {
        return Err(format!("`{shown}` is larger than 16 MiB"));
    }
    Ok(content)
}

/// A file that can be opened, whatever it holds (a grants file may be large).
pub(super) fn readable(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let unreadable = |e: std::io::Error| format!("`{shown}` cannot be read: {}", lower(&e));
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(format!("`{shown}` is not a file"));
    }
    File::open(path).map(drop).map_err(unreadable)
}

/// A file that holds one secret.
pub(super) fn secret(path: &Path) -> Result<(), String> {
    let content = zeroize::Zeroizing::new(bytes(path)?);
    let secret = content.strip_suffix(b"\n").unwrap_or(&content);
    let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
    if secret.is_empty() {
        return Err(format!("`{}` is empty", path.display()));
    }
    if secret.iter().any(|b| matches!(b, b'\n' | b'\r' | 0)) {
        return Err(format!("`{}` holds more than one line", path.display()));
    }
    Ok(())
}

/// What a certificate file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The first is shown to the peer, the others link it to an authority.
    Chain,
    /// Each is an authority.
    Authorities,
    /// Each is believed, authority or not.
    Anchors,
}

/// The certificates of a PEM file: at least one, and every block a good one.
pub(super) fn certificates(path: &Path, purpose: Purpose) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let found: Vec<CertificateDer<'static>> = blocks(path, "CERTIFICATE")?;
    if found.is_empty() {
        return Err(format!("`{shown}` has no certificate"));
    }
    for (number, certificate) in found.iter().enumerate() {
        let number = number + 1;
        let (rest, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate)
            .map_err(|_| format!("certificate {number} of `{shown}` is damaged"))?;
        if !rest.is_empty() {
            return Err(format!("certificate {number} of `{shown}` is damaged"));
        }
        if purpose == Purpose::Authorities && !parsed.is_ca() {
            return Err(format!("certificate {number} of `{shown}` is not that of an authority (CA)"));
        }
    }
    Ok(found)
}

/// The revocation lists of a PEM file: at least one, and every block a good one.
pub(super) fn revocation_lists(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let found: Vec<CertificateRevocationListDer<'static>> = blocks(path, "X509 CRL")?;
    if found.is_empty() {
        return Err(format!("`{shown}` has no revocation list"));
    }
    for (number, list) in found.iter().enumerate() {
        match x509_parser::revocation_list::CertificateRevocationList::from_der(list) {
            Ok(([], _)) => {}
            _ => return Err(format!("revocation list {} of `{shown}` is damaged", number + 1)),
        }
    }
    Ok(())
}

/// The one private key of a PEM file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let shown = path.display();
    let content = zeroize::Zeroizing::new(bytes(path)?);
    let mut keys = PrivateKeyDer::pem_slice_iter(&content);
    let key = match keys.next() {
        Some(Ok(key)) => key,
        Some(Err(_)) => return Err(format!("`{shown}` is damaged")),
        None if content.windows(9).any(|w| w == b"ENCRYPTED") => {
            return Err(format!("`{shown}` is encrypted, and there is nobody to ask for its password"));
        }
        None => return Err(format!("`{shown}` has no private key")),
    };
    match keys.next() {
        None => Ok(key),
        Some(_) => Err(format!("`{shown}` has more than one private key")),
    }
}

/// A certificate and the key that belongs to it.
pub(super) fn key_pair(certificate: &Path, key: &Path) -> Result<(), (Side, String)> {
    let chain = certificates(certificate, Purpose::Chain).map_err(|e| (Side::Certificate, e))?;
    let der = private_key(key).map_err(|e| (Side::Key, e))?;
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)
        .map_err(|_| (Side::Key, format!("`{}` holds a key of a kind that is not supported", key.display())))?;
    CertifiedKey::new(chain, signer).keys_match().map_err(|_| {
        (Side::Key, format!("`{}` is not the key of the certificate in `{}`", key.display(), certificate.display()))
    })
}

/// Which of a pair is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The certificate.
    Certificate,
    /// The key.
    Key,
}

/// A JWKS file: at least one public key, and no private one.
pub(super) fn key_set(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let document: serde_json::Value =
        serde_json::from_slice(&bytes(path)?).map_err(|e| format!("`{shown}` is not JSON: {e}"))?;
    let keys = document.get("keys").and_then(|k| k.as_array());
    let keys = keys.ok_or_else(|| format!("`{shown}` is not a key set: it has no list `keys`"))?;
    if keys.is_empty() {
        return Err(format!("`{shown}` has no key"));
    }
    for (number, key) in keys.iter().enumerate() {
        let number = number + 1;
        if key.get("d").is_some() || key.get("k").is_some() {
            return Err(format!("key {number} of `{shown}` is a private or a shared one"));
        }
        if !key.get("kty").is_some_and(serde_json::Value::is_string) {
            return Err(format!("key {number} of `{shown}` has no `kty`"));
        }
    }
    Ok(())
}

/// Every block of a PEM file that is of this kind; another kind, or a damaged one, is an error.
fn blocks<T: PemObject>(path: &Path, label: &str) -> Result<Vec<T>, String> {
    let shown = path.display();
    let content = bytes(path)?;
    let begun = content.split(|b| *b == b'\n').filter(|line| line.trim_ascii().starts_with(b"-----BEGIN")).count();
    let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(&content).collect::<Result<Vec<_>, _>>();
    let found = T::pem_slice_iter(&content).collect::<Result<Vec<T>, _>>();
    // INVARIANT: a block that is skipped is a caller who is let in or kept out by accident, so none is skipped.
    match (sections, found) {
        (Ok(_), Ok(found)) if found.len() == begun => Ok(found),
        (Ok(_), Ok(_)) => Err(format!("`{shown}` holds a block that is no `{label}`, or a damaged one")),
        _ => Err(format!("`{shown}` holds a damaged block")),
    }
}

/// The system's message, fit to follow a colon.
pub(super) fn lower(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string().to_lowercase(),
    }
}
