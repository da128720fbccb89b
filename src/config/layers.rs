//! The three sources, read into one set of values that know where they came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::ConfigError;
use super::keys::{self, KEYS, Kind};

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In this file.
    File(PathBuf),
    /// In this environment variable.
    Env(String),
    /// In this flag of the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    value: toml::Value,
    origin: Origin,
}

/// All values that were set, a later source over an earlier one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Layers {
    settings: BTreeMap<&'static str, Setting>,
}

/// Variables that begin with `FIREKEEP_` and are no settings: of the commands themselves and of the scripts.
const OTHER_VARIABLES: [&str; 9] = [
    "FIREKEEP_CONFIG",
    "FIREKEEP_CACHE",
    "FIREKEEP_CONFORMANCE",
    "FIREKEEP_REQUIRE_SANDBOX",
    "FIREKEEP_COMMIT",
    "FIREKEEP_SANDBOX",
    "FIREKEEP_E2E_FULL",
    "FIREKEEP_E2E_SEED",
    "FIREKEEP_E2E_KEEP",
];

impl Layers {
    /// Reads a configuration file's text.
    ///
    /// # Errors
    /// When it is not TOML, or has a key that does not exist or a value of the wrong kind.
    pub fn add_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error
                .span()
                .map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            let message = error.message().replace('\n', " ");
            ConfigError::new(format!("{}:{line}: not valid TOML: {message}", path.display()))
        })?;
        let origin = Origin::File(path.to_owned());
        for (name, value) in table {
            if let (toml::Value::Table(inner), None) = (&value, keys::find(&name)) {
                for (inner_name, value) in inner.clone() {
                    self.add(&format!("{name}.{inner_name}"), value, origin.clone())?;
                }
            } else {
                self.add(&name, value, origin.clone())?;
            }
        }
        Ok(())
    }

    /// Takes the settings of the environment. Values are texts; lists are separated by commas.
    ///
    /// # Errors
    /// When a variable begins with `FIREKEEP_` and is no setting, or has a value of the wrong kind.
    pub fn add_env(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), ConfigError> {
        for (name, text) in variables {
            if !name.starts_with("FIREKEEP_") || OTHER_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            let Some(key) = KEYS.iter().find(|key| key.env_name() == name) else {
                let wanted = name["FIREKEEP_".len()..].replace("__", ".").to_ascii_lowercase();
                let hint = keys::nearest(&wanted)
                    .and_then(keys::find)
                    .map(|key| key.env_name());
                return Err(unknown(&format!("environment variable {name}"), hint.as_deref()));
            };
            self.add_text(key, &text, Origin::Env(name))?;
        }
        Ok(())
    }

    /// Takes a flag: `name` as in [`KEYS`].
    ///
    /// # Errors
    /// When its value is of the wrong kind.
    pub fn add_flag(&mut self, name: &'static str, text: &str) -> Result<(), ConfigError> {
        let key = keys::find(name).expect("flags are named after keys");
        self.add_text(key, text, Origin::Flag(keys::flag_name(name)))
    }

    fn add_text(&mut self, key: &'static keys::Key, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let value = match key.kind {
            Kind::Text => toml::Value::String(text.to_owned()),
            Kind::List => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                toml::Value::Array(items.map(|item| toml::Value::String(item.to_owned())).collect())
            }
            Kind::Number => match text.trim().parse() {
                Ok(number) => toml::Value::Integer(number),
                Err(_) => toml::Value::String(text.to_owned()),
            },
            Kind::Boolean => match text {
                "true" | "1" => toml::Value::Boolean(true),
                "false" | "0" => toml::Value::Boolean(false),
                _ => {
                    let setting = Setting {
                        value: toml::Value::String(text.to_owned()),
                        origin,
                    };
                    return Err(error_of(key.name, &setting, text, "must be true or false"));
                }
            },
        };
        self.add(key.name, value, origin)
    }

    fn add(&mut self, name: &str, value: toml::Value, origin: Origin) -> Result<(), ConfigError> {
        let Some(key) = keys::find(name) else {
            return Err(unknown(&format!("{origin}: key \"{name}\""), keys::nearest(name)));
        };
        let fits = match (key.kind, &value) {
            (Kind::Text, toml::Value::String(_)) | (Kind::Boolean, toml::Value::Boolean(_)) => true,
            (Kind::Number, toml::Value::Integer(_)) => true,
            (Kind::List, toml::Value::Array(items)) => items.iter().all(toml::Value::is_str),
            _ => false,
        };
        let setting = Setting { value, origin };
        if !fits {
            let remedy = match key.kind {
                Kind::Text => "must be a text in quotes",
                Kind::Boolean => "must be true or false",
                Kind::Number => "must be a whole number",
                Kind::List => "must be a list of texts, such as [\"https://pds.example.com\"]",
            };
            let shown = setting.value.to_string().replace('\n', " ");
            return Err(error_of(key.name, &setting, &shown, remedy));
        }
        self.settings.insert(key.name, setting);
        Ok(())
    }

    /// A text, if it is set. An empty one counts as not set.
    #[must_use]
    pub fn text(&self, name: &'static str) -> Option<String> {
        let text = self.settings.get(name).and_then(|setting| setting.value.as_str());
        text.filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// A truth value, if it is set.
    #[must_use]
    pub fn boolean(&self, name: &'static str) -> Option<bool> {
        self.settings
            .get(name)
            .and_then(|setting| setting.value.as_bool())
    }

    /// A whole number, if it is set.
    #[must_use]
    pub fn number(&self, name: &'static str) -> Option<i64> {
        self.settings
            .get(name)
            .and_then(|setting| setting.value.as_integer())
    }

    /// A list; empty if it is not set.
    #[must_use]
    pub fn list(&self, name: &'static str) -> Vec<String> {
        let items = self
            .settings
            .get(name)
            .and_then(|setting| setting.value.as_array());
        items
            .into_iter()
            .flatten()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect()
    }

    /// Every key with the value in force and where it stands, a line each. No value is a secret: those are in
    /// files that these name; of where alarms go only the host is shown.
    #[must_use]
    pub fn shown(&self) -> String {
        let mut text = String::new();
        for key in &KEYS {
            let line = match self.settings.get(key.name) {
                Some(setting) if key.name.starts_with("notify.") && key.name.ends_with("_url") => {
                    let url = setting.value.as_str().unwrap_or_default();
                    let host: Vec<&str> = url.splitn(4, '/').take(3).collect();
                    let host = host.join("/");
                    let host = host.split(['?', '@']).next().unwrap_or_default();
                    format!("{} = \"{host}/…\"  # {}", key.name, setting.origin)
                }
                Some(setting) => format!("{} = {}  # {}", key.name, setting.value, setting.origin),
                None if key.default.is_empty() => continue,
                None => format!("{} = {}  # default", key.name, key.default),
            };
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    /// An error about the value of a key.
    #[must_use]
    pub fn error(&self, name: &'static str, remedy: &str) -> ConfigError {
        let value = self
            .settings
            .get(name)
            .map_or_else(String::new, |setting| match &setting.value {
                toml::Value::String(text) => text.clone(),
                other => other.to_string(),
            });
        self.error_for(name, &value, remedy)
    }

    /// An error about one value of a key.
    #[must_use]
    pub fn error_for(&self, name: &'static str, value: &str, remedy: &str) -> ConfigError {
        match self.settings.get(name) {
            Some(setting) => error_of(name, setting, value, remedy),
            None => ConfigError::new(format!("{name} (default) = {}: {remedy}", quoted(value))),
        }
    }
}

fn error_of(name: &str, setting: &Setting, value: &str, remedy: &str) -> ConfigError {
    ConfigError::new(format!(
        "{}: {name} = {}: {remedy}",
        setting.origin,
        quoted(value)
    ))
}

/// A value as it may be shown: on one line, and not endless.
fn quoted(value: &str) -> String {
    let mut shown: String = value.chars().take(120).collect();
    if shown.len() < value.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

fn unknown(what: &str, hint: Option<&str>) -> ConfigError {
    match hint {
        Some(hint) => ConfigError::new(format!("{what} is not known; did you mean {hint}?")),
        None => ConfigError::new(format!(
            "{what} is not known; `firekeep config example` shows every key"
        )),
    }
}
