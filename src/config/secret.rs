use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};

/// What every printed form of a secret is.
pub const MASK: &str = "***";

/// A text that is never shown: not by `Debug` or `Display`, not when it is written out again.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself, for the client that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "secret", "x-secret": true })
    }
}

/// Whether a client property carries a secret, as far as its name tells.
pub fn is_secret_name(name: &str) -> bool {
    const PARTS: [&str; 8] =
        ["password", "passphrase", "secret", "jaas", "key.pem", "private.key", "user.info", "oauthbearer.config"];
    let name = name.to_ascii_lowercase();
    // A path to a secret is not one.
    !name.ends_with(".location") && !name.ends_with(".file") && PARTS.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_only_seen_when_asked_for() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn names_of_kafka_properties_tell_which_are_secret() {
        for name in [
            "sasl.password",
            "ssl.key.password",
            "ssl.key.pem",
            "sasl.jaas.config",
            "sasl.oauthbearer.client.secret",
            "SASL.PASSWORD",
            "ssl.keystore.password",
            "sasl.oauthbearer.assertion.private.key.passphrase",
        ] {
            assert!(is_secret_name(name), "{name} is one");
        }
        for name in ["sasl.username", "ssl.ca.location", "ssl.key.location", "security.protocol", "client.id"] {
            assert!(!is_secret_name(name), "{name} is none");
        }
    }
}
