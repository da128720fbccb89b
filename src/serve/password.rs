#![allow(clippy::disallowed_methods, reason = "shell: takes its time")]
//! The admin's password: only its hash is kept, and guessing it is slow.

use std::fmt;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher as _, PasswordVerifier as _};

/// Longest password, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// Most memory that a hash may ask for, in KiB: a check must not take what the daemon has not.
const MEMORY_KIB_MAX: u32 = 64 * 1024;
/// Most rounds that it may ask for.
const ROUNDS_MAX: u32 = 64;

/// The hash of a password, as argon2 and its kin write it: `$argon2id$…`.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminPassword(PasswordHash);

impl fmt::Debug for AdminPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminPassword(…)")
    }
}

impl AdminPassword {
    /// Reads a hash.
    ///
    /// # Errors
    /// What is wrong with it; never the text itself.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let hash = PasswordHash::new(text.trim()).map_err(|_| "is no argon2 hash")?;
        if !matches!(hash.algorithm.as_str(), "argon2id" | "argon2i" | "argon2d") || hash.hash.is_none() {
            return Err("is no argon2 hash");
        }
        let params = argon2::Params::try_from(&hash).map_err(|_| "is no argon2 hash")?;
        if params.m_cost() > MEMORY_KIB_MAX || params.t_cost() > ROUNDS_MAX {
            return Err("asks for more than 64 MiB or 64 rounds");
        }
        Ok(Self(hash))
    }

    /// The hash of a password, with 16 random bytes.
    ///
    /// # Errors
    /// When the password cannot be one.
    pub fn hash(password: &str, salt: [u8; 16]) -> Result<String, &'static str> {
        if password.len() < 12 || password.len() > PASSWORD_BYTES_MAX {
            return Err("must have at least 12 characters, and at most 1024 bytes");
        }
        let hash: PasswordHash = Argon2::default()
            .hash_password_with_salt(password.as_bytes(), &salt)
            .map_err(|_| "cannot be hashed")?;
        Ok(hash.to_string())
    }

    /// One that costs nothing, for tests.
    #[cfg(test)]
    pub(super) fn cheap(password: &str) -> Self {
        let params = argon2::Params::new(64, 1, 1, None).expect("small ones");
        let argon = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let hash: PasswordHash = argon
            .hash_password_with_salt(password.as_bytes(), &[1; 16])
            .expect("hashes");
        Self(hash)
    }

    /// Whether it is this password. Takes some 30 ms and 19 MiB.
    #[must_use]
    pub fn is(&self, password: &str) -> bool {
        password.len() <= PASSWORD_BYTES_MAX
            && Argon2::default()
                .verify_password(password.as_bytes(), &self.0)
                .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_password_knows_it_and_no_other() {
        let text = AdminPassword::hash("correct horse", [7; 16]).expect("hashes");
        assert!(text.starts_with("$argon2id$") && !text.contains("horse"));
        let hash = AdminPassword::parse(&format!("{text}\n")).expect("parses");
        assert!(hash.is("correct horse"));
        for other in ["", "correct horsE", "correct horse ", &"x".repeat(2000)] {
            assert!(!hash.is(other), "{other}");
        }
        assert!(!format!("{hash:?}").contains("argon2id"));
        assert_ne!(AdminPassword::hash("correct horse", [8; 16]), Ok(text));
    }

    #[test]
    fn what_is_no_hash_is_refused_and_not_repeated() {
        let good = AdminPassword::hash("correct horse", [7; 16]).expect("hashes");
        for bad in [
            "",
            "correct horse",
            "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0",
            &good.replace("m=19456", "m=1048576"),
            &good.replace("t=2", "t=1000"),
            &good.replace("argon2id", "scrypt"),
        ] {
            let error = AdminPassword::parse(bad).expect_err("no hash");
            assert!(!error.contains("horse"), "{error}");
        }
        for short in ["", "hunter2", "elevenchars"] {
            assert!(AdminPassword::hash(short, [0; 16]).is_err(), "{short}");
        }
    }
}
