#![allow(clippy::disallowed_methods, reason = "shell: entropy")]
//! Encryption to the admin's recipients, as `age` does it: `age -d -i key.txt` opens what is made here.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::str::FromStr as _;

use age::x25519;
use zeroize::Zeroizing;

use super::{PART_BYTES_MAX, StateError};
use crate::types::Digest;
use crate::types::cid::sha256;

/// Most recipients.
const RECIPIENTS_MAX: usize = 20;

/// Who can open what is encrypted.
#[derive(Clone)]
pub struct Recipients {
    all: Vec<x25519::Recipient>,
    /// Which they are.
    pub fingerprint: Digest,
}

impl std::fmt::Debug for Recipients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recipients")
            .field("count", &self.all.len())
            .finish_non_exhaustive()
    }
}

impl Recipients {
    /// Reads recipients, one a line; lines that begin with `#` say nothing.
    ///
    /// # Errors
    /// When there is none, or one is none.
    pub fn parse(text: &str) -> Result<Self, StateError> {
        let (mut all, mut names) = (Vec::new(), BTreeSet::new());
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
                return Err(StateError::new(
                    "this is a secret key; a recipient begins with age1, and the secret key belongs somewhere else",
                ));
            }
            let recipient = x25519::Recipient::from_str(line)
                .map_err(|why| StateError(format!("{line:.70} is no age recipient: {why}")))?;
            if names.insert(recipient.to_string()) {
                all.push(recipient);
            }
        }
        if all.is_empty() {
            return Err(StateError::new(
                "no recipient: private state is only ever written encrypted; make a key with `age-keygen`, keep it \
                 off this machine, and give its public half (age1…)",
            ));
        }
        if all.len() > RECIPIENTS_MAX {
            return Err(StateError(format!("more than {RECIPIENTS_MAX} recipients")));
        }
        let names: Vec<String> = names.into_iter().collect();
        let fingerprint = sha256(names.join("\n").as_bytes());
        Ok(Self { all, fingerprint })
    }

    /// Encrypts to all of them.
    ///
    /// # Errors
    /// When it cannot be done.
    pub fn encrypt(&self, plain: &[u8]) -> Result<Vec<u8>, StateError> {
        let failed = |error: &dyn std::fmt::Display| StateError(format!("cannot encrypt: {error}"));
        let recipients = self.all.iter().map(|one| one as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(|error| failed(&error))?;
        let mut cipher = Vec::with_capacity(plain.len() + plain.len() / 1000 + 1024);
        let mut writer = encryptor
            .wrap_output(&mut cipher)
            .map_err(|error| failed(&error))?;
        writer.write_all(plain).map_err(|error| failed(&error))?;
        writer.finish().map_err(|error| failed(&error))?;
        Ok(cipher)
    }
}

/// The secret half of a recipient: what opens.
pub struct Keys(Vec<x25519::Identity>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(…)")
    }
}

impl Keys {
    /// Reads a file as `age-keygen` writes it.
    ///
    /// # Errors
    /// When it holds none.
    pub fn parse(text: &str) -> Result<Self, StateError> {
        let mut keys = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = x25519::Identity::from_str(line);
            keys.push(key.map_err(|_| StateError::new("a line is no age secret key (AGE-SECRET-KEY-…)"))?);
        }
        if keys.is_empty() {
            return Err(StateError::new("it holds no age secret key (AGE-SECRET-KEY-…)"));
        }
        Ok(Self(keys))
    }

    /// Opens what was encrypted to one of them.
    ///
    /// # Errors
    /// When it was not, or was changed since.
    pub fn decrypt(&self, cipher: &[u8]) -> Result<Zeroizing<Vec<u8>>, StateError> {
        let bad = |error: &dyn std::fmt::Display| StateError(format!("cannot be opened: {error}"));
        let decryptor = age::Decryptor::new_buffered(cipher).map_err(|error| bad(&error))?;
        let keys = self.0.iter().map(|key| key as &dyn age::Identity);
        let reader = decryptor.decrypt(keys).map_err(|error| bad(&error))?;
        // Of its full size from the beginning: what grows leaves copies behind.
        let mut plain = Zeroizing::new(Vec::with_capacity(cipher.len()));
        reader
            .take(PART_BYTES_MAX + 1)
            .read_to_end(&mut plain)
            .map_err(|error| bad(&error))?;
        if plain.len() as u64 > PART_BYTES_MAX {
            return Err(StateError::new("it is larger than any part"));
        }
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret as _;

    use super::*;

    fn key() -> (String, String) {
        let key = x25519::Identity::generate();
        (
            key.to_string().expose_secret().to_owned(),
            key.to_public().to_string(),
        )
    }

    #[test]
    fn only_the_recipients_open_it_and_only_as_it_was() {
        let ((secret, public), (second, other), (third, _)) = (key(), key(), key());
        let recipients = Recipients::parse(&format!("# us\n{public}\n\n{other}\n{public}\n")).expect("reads");
        assert_eq!(recipients.all.len(), 2);
        let plain = vec![9; 200_000];
        let cipher = recipients.encrypt(&plain).expect("encrypts");
        assert!(!cipher.windows(40).any(|window| window == &plain[..40]));
        for secret in [&secret, &second] {
            let keys = Keys::parse(&format!("# created\n{secret}\n")).expect("reads");
            assert_eq!(*keys.decrypt(&cipher).expect("opens"), plain);
            let mut changed = cipher.clone();
            *changed.last_mut().expect("a byte") ^= 1;
            assert!(keys.decrypt(&changed).is_err());
            assert!(keys.decrypt(&cipher[..cipher.len() - 70_000]).is_err());
        }
        assert!(Keys::parse(&third).expect("reads").decrypt(&cipher).is_err());
    }

    #[test]
    fn without_a_recipient_it_refuses() {
        let (secret, public) = key();
        for text in ["", "# nobody\n", "age1nonsense", &secret, &secret.to_lowercase()] {
            let error = Recipients::parse(text).expect_err(text);
            assert!(!error.to_string().contains(&secret[16..]), "{error}");
        }
        let many: Vec<String> = (0..=RECIPIENTS_MAX).map(|_| key().1).collect();
        assert!(Recipients::parse(&many.join("\n")).is_err());
        let (one, two) = (
            Recipients::parse(&public).expect("reads"),
            Recipients::parse(&many[0]).expect("reads"),
        );
        assert_ne!(one.fingerprint, two.fingerprint);
        for text in ["", &public, "AGE-SECRET-KEY-1XX"] {
            let error = Keys::parse(text).expect_err(text);
            assert!(!error.to_string().contains("1XX"), "{error}");
        }
    }
}
