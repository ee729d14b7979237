//! What can go wrong between a log and a record.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::aws;
use crate::error::{Kind, Situation};
use crate::offsets::{RecordMark, TopicPartition};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Cheap to clone, so that one failure can be told to several waiters.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("kafka property `{name}` cannot be set: {why}")]
    ReservedProperty { name: String, why: &'static str },

    /// Without the value, which may be a secret.
    #[error("kafka property `{name}` is not accepted: {problem}")]
    Property { name: String, problem: &'static str },

    #[error("the kafka client cannot be set up: {problem}")]
    Setup { problem: String },

    #[error("`{pattern}` is not a topic: names have up to 249 letters, digits, `.`, `_` and `-`, and `*` for any part")]
    TopicPattern { pattern: String },

    #[error("topic `{topic}` does not exist on `{brokers}`")]
    TopicMissing { topic: String, brokers: String },

    #[error("kafka at `{brokers}` does not answer")]
    Unreachable {
        brokers: String,
        #[source]
        source: Reason,
    },

    #[error("kafka at `{brokers}` refused access")]
    Denied {
        brokers: String,
        #[source]
        source: Reason,
    },

    #[error("kafka at `{brokers}` has no certificate that is trusted")]
    Untrusted {
        brokers: String,
        #[source]
        source: Reason,
    },

    #[error("kafka at `{brokers}` does not take this client's certificate")]
    NotTrusted {
        brokers: String,
        #[source]
        source: Reason,
    },

    #[error("the token endpoint `{endpoint}` gave no token: {answer}")]
    TokenRefused { endpoint: String, answer: String },

    #[error("the token endpoint `{endpoint}` does not answer")]
    TokenUnreachable {
        endpoint: String,
        #[source]
        source: Reason,
    },

    #[error("the token endpoint `{endpoint}` has no certificate that is trusted")]
    TokenUntrusted {
        endpoint: String,
        #[source]
        source: Reason,
    },

    #[error(transparent)]
    Aws(#[from] aws::Error),

    #[error("topic `{}` partition {}: offset {offset} is no longer there, the oldest is {first}", at.topic, at.partition)]
    Expired { at: TopicPartition, offset: i64, first: i64 },

    #[error("topic `{}` partition {}: offset {offset} is past the end, which is {end}", at.topic, at.partition)]
    PastEnd { at: TopicPartition, offset: i64, end: i64 },

    #[error("topic `{}` partition {}: the record at offset {offset} is not the one that was read there", at.topic, at.partition)]
    Replaced {
        at: TopicPartition,
        offset: i64,
        /// The one that was read there, where it is known.
        mark: Option<RecordMark>,
    },

    #[error("kafka at `{brokers}` stopped serving this client")]
    Broken {
        brokers: String,
        #[source]
        source: Reason,
    },

    #[error("`{location}` cannot be read")]
    Files {
        location: String,
        #[source]
        source: Reason,
        is_missing: bool,
    },

    #[error("there is no file at `{location}`")]
    NoFiles { location: String },

    #[error("which topic `{file}` is of is not known")]
    NoTopic { file: String },

    #[error("line {line} of `{file}` is of topic `{found}`, and the file is read as one of `{topic}`")]
    OtherTopic { file: String, line: i64, topic: String, found: String },

    #[error("topic `{}` partition {}: the files are not those that were there before, from `{file}` on", at.topic, at.partition)]
    FilesMoved { at: TopicPartition, file: String },

    #[error("line {line} of `{file}` has no end")]
    LongLine { file: String, line: i64 },

    #[error("`{file}` cannot be unpacked")]
    Damaged {
        file: String,
        #[source]
        source: Reason,
    },

    #[error("column `{column}` of `{file}` is of type {found}, which no sink of Kafka Connect writes")]
    Uncarried { file: String, column: String, found: String },

    #[error("the embedded broker cannot {what}")]
    Embedded {
        what: &'static str,
        #[source]
        source: Reason,
    },
}

impl Error {
    /// What trouble with the brokers means, where the client does not get over it by itself.
    pub(super) fn new(trouble: Trouble, brokers: &str, source: Reason, at: Option<&TopicPartition>) -> Self {
        let brokers = brokers.to_string();
        match (trouble, at) {
            (Trouble::TopicGone, Some(at)) => Error::TopicMissing { topic: at.topic.to_string(), brokers },
            (Trouble::Denied, _) => Error::Denied { brokers, source },
            (Trouble::Untrusted, _) => Error::Untrusted { brokers, source },
            (Trouble::NotTrusted, _) => Error::NotTrusted { brokers, source },
            _ => Error::Unreachable { brokers, source },
        }
    }

    /// The topic that the error is about, where it is about one alone.
    pub fn topic(&self) -> Option<&str> {
        match self {
            Error::TopicMissing { topic, .. } => Some(topic),
            Error::Expired { at, .. } | Error::PastEnd { at, .. } | Error::Replaced { at, .. } => Some(&at.topic),
            _ => None,
        }
    }
}

/// What the Kafka client said.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub struct Reason {
    text: String,
}

impl Reason {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Reason { text: text.into() }
    }
}

impl From<&KafkaError> for Reason {
    fn from(error: &KafkaError) -> Self {
        // The client's own text repeats the code's name around the sentence, and for settings shows their values.
        let text = match (error.rdkafka_error_code(), error) {
            (Some(code), _) => code.to_string(),
            (None, KafkaError::ClientConfig(_, _, name, _)) => format!("property `{name}` is not accepted"),
            (None, other) => other.to_string(),
        };
        Reason { text }
    }
}

/// Which situation an error code of the client belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The position is outside of what the partition holds.
    OutOfRange,
    Denied,
    /// The brokers' certificate, or ours, is not taken.
    Untrusted,
    NotTrusted,
    TopicGone,
    /// The client tries again by itself.
    Passing,
}

pub(super) fn trouble(code: Option<RDKafkaErrorCode>) -> Trouble {
    match code {
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::NoOffset) => {
            Trouble::OutOfRange
        }
        Some(
            RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed,
        ) => Trouble::Denied,
        Some(
            RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::UnknownTopicOrPartition,
        ) => Trouble::TopicGone,
        _ => Trouble::Passing,
    }
}

/// The same, with what the client said, which is where problems of TLS differ.
pub(super) fn trouble_said(code: Option<RDKafkaErrorCode>, text: &str) -> Trouble {
    match trouble(code) {
        Trouble::Passing if text.contains("certificate verify failed") => Trouble::Untrusted,
        Trouble::Passing if text.contains("alert") && text.contains("certificate") => Trouble::NotTrusted,
        other => other,
    }
}

impl Situation for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::ReservedProperty { .. }
            | Error::Property { .. }
            | Error::Setup { .. }
            | Error::TopicPattern { .. }
            | Error::TopicMissing { .. }
            | Error::Files { is_missing: true, .. }
            | Error::NoFiles { .. }
            | Error::NoTopic { .. }
            | Error::OtherTopic { .. }
            | Error::Uncarried { .. }
            | Error::Denied { .. }
            | Error::Untrusted { .. }
            | Error::NotTrusted { .. }
            | Error::TokenRefused { .. }
            | Error::TokenUntrusted { .. } => Kind::Config,
            Error::Aws(error) => error.kind(),
            Error::Files { .. } => Kind::Unavailable,
            Error::FilesMoved { .. } | Error::LongLine { .. } | Error::Damaged { .. } => Kind::Corrupt,
            Error::Unreachable { .. }
            | Error::Broken { .. }
            | Error::TokenUnreachable { .. }
            | Error::Embedded { .. } => Kind::Unavailable,
            Error::Expired { .. } | Error::PastEnd { .. } | Error::Replaced { .. } => Kind::Corrupt,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::ReservedProperty { name, .. } => format!("remove `{name}` from `source.kafka.properties`"),
            Error::Property { name, .. } => {
                format!("check `source.kafka.properties.{name}` against librdkafka's CONFIGURATION.md")
            }
            Error::Setup { .. } => "check the security settings in `source.kafka.properties`".to_string(),
            Error::TopicMissing { .. } => {
                "create the topic, correct `source.kafka.topics`, or use a pattern, which may match nothing yet"
                    .to_string()
            }
            Error::Unreachable { .. } => {
                "check `source.kafka.brokers`, the network, and whether the brokers expect TLS".to_string()
            }
            Error::Denied { .. } => {
                "check the credentials in `source.kafka`, and the rights on the topics and the group".to_string()
            }
            Error::Untrusted { .. } => {
                "name the authority that signed the brokers' certificate as `ssl.ca.location` (a file) or `ssl.ca.pem` in \
                 `source.kafka.properties`; the names in `source.kafka.brokers` have to be in that certificate"
                    .to_string()
            }
            Error::NotTrusted { .. } => {
                "set `ssl.certificate.location` and `ssl.key.location`, or `ssl.certificate.pem` and `ssl.key.pem`, in \
                 `source.kafka.properties` to a certificate that the brokers' authority signed"
                    .to_string()
            }
            Error::TokenRefused { .. } => {
                "check `sasl.oauthbearer.client.id`, `.client.secret`, `.scope` and `.token.endpoint.url` in \
                 `source.kafka.properties`"
                    .to_string()
            }
            Error::TokenUnreachable { .. } => {
                "check `sasl.oauthbearer.token.endpoint.url` in `source.kafka.properties`, and the network".to_string()
            }
            Error::TokenUntrusted { .. } => {
                "name the authority that signed its certificate as `https.ca.location` or `https.ca.pem` in \
                 `source.kafka.properties`"
                    .to_string()
            }
            Error::Aws(error) => return error.hint(),
            Error::Expired { at, offset, first } => format!(
                "records {offset} to {} left the topic before they were read; fill them in from elsewhere, or accept the \
                 gap with `{}` (or `latest`, an OFFSET or a TIME); longer retention of the topic prevents it",
                first - 1,
                reset(at, "")
            ),
            Error::PastEnd { at, offset, .. } => format!(
                "the topic was made anew, or its log was cut; bring back a log that reaches to offset {offset}, or read \
                 what there is now as the topic's next life with `{}` (or `latest`, an OFFSET or a TIME)",
                reset(at, " --epoch")
            ),
            Error::Replaced { at, .. } => format!(
                "the topic was deleted and made anew, or its log was cut and written again; read what there is now as \
                 the topic's next life with `{}` (or `latest`, an OFFSET or a TIME)",
                reset(at, " --epoch")
            ),
            Error::NoFiles { .. } => "check `source.files.paths`; a pattern with `*` may match nothing yet".to_string(),
            Error::NoTopic { .. } => {
                "set `source.files.topic`, or put the file into a folder with the topic's name".to_string()
            }
            Error::OtherTopic { .. } => {
                "read the files of each topic from a folder with the topic's name, or correct `source.files.topic`"
                    .to_string()
            }
            Error::FilesMoved { .. } => {
                "files are read in the order of their names: put new ones behind those that were read, and leave those \
                 where they are"
                    .to_string()
            }
            Error::LongLine { .. } => "a file holds one JSON document in each line".to_string(),
            Error::Damaged { .. } => "the file was probably cut short: write it again".to_string(),
            Error::Uncarried { .. } => {
                "its values would not come as they are in the topic: write the file as JSON lines, or with types of Connect's"
                    .to_string()
            }
            _ => return None,
        };
        Some(hint)
    }

    fn state(&self) -> Option<String> {
        match self {
            Error::Expired { .. } | Error::PastEnd { .. } | Error::Replaced { .. } => {
                Some("nothing was skipped; what was committed stays as it is".to_string())
            }
            _ => None,
        }
    }
}

fn reset(at: &TopicPartition, flag: &str) -> String {
    format!("icestream offsets reset --topic {} --partition {} --to earliest{flag}", at.topic, at.partition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_that_is_not_there_says_what_to_do() {
        let at = TopicPartition::new("shop.public.orders", 3);
        let check = |error: Error| crate::error::Error::from(error).render();
        insta::assert_snapshot!(check(Error::Expired { at: at.clone(), offset: 40, first: 100 }), @r"
        error: topic `shop.public.orders` partition 3: offset 40 is no longer there, the oldest is 100
          nothing was skipped; what was committed stays as it is
          hint: records 40 to 99 left the topic before they were read; fill them in from elsewhere, or accept the gap with `icestream offsets reset --topic shop.public.orders --partition 3 --to earliest` (or `latest`, an OFFSET or a TIME); longer retention of the topic prevents it
        ");
        insta::assert_snapshot!(check(Error::Replaced { at: at.clone(), offset: 39, mark: None }), @r"
        error: topic `shop.public.orders` partition 3: the record at offset 39 is not the one that was read there
          nothing was skipped; what was committed stays as it is
          hint: the topic was deleted and made anew, or its log was cut and written again; read what there is now as the topic's next life with `icestream offsets reset --topic shop.public.orders --partition 3 --to earliest --epoch` (or `latest`, an OFFSET or a TIME)
        ");
        insta::assert_snapshot!(check(Error::PastEnd { at, offset: 40, end: 7 }), @r"
        error: topic `shop.public.orders` partition 3: offset 40 is past the end, which is 7
          nothing was skipped; what was committed stays as it is
          hint: the topic was made anew, or its log was cut; bring back a log that reaches to offset 40, or read what there is now as the topic's next life with `icestream offsets reset --topic shop.public.orders --partition 3 --to earliest --epoch` (or `latest`, an OFFSET or a TIME)
        ");
    }

    #[test]
    fn the_client_s_words_are_kept_without_values() {
        let down = KafkaError::MessageConsumption(RDKafkaErrorCode::AllBrokersDown);
        let error = Error::Unreachable { brokers: "kafka:9092".to_string(), source: Reason::from(&down) };
        insta::assert_snapshot!(crate::error::Error::from(error).render(), @r"
        error: kafka at `kafka:9092` does not answer
          caused by: AllBrokersDown (Local: All broker connections are down)
          hint: check `source.kafka.brokers`, the network, and whether the brokers expect TLS
        ");
    }
}
