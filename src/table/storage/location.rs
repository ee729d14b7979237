//! What a location names.

use crate::table::error::{Error, Result};

/// A parsed location.
///
/// Percent signs mean themselves: engines escape partition values when they name a file, so decoding here would look
/// for another file than the one that was written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// An absolute path.
    Local(&'a str),
    S3 {
        bucket: &'a str,
        key: &'a str,
    },
}

impl<'a> Place<'a> {
    pub(super) fn parse(location: &'a str) -> Result<Self> {
        let place = match location.split_once("://") {
            Some(("s3" | "s3a" | "s3n", rest)) => {
                let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
                (!bucket.is_empty()).then_some(Place::S3 { bucket, key })
            }
            Some(("file", rest)) => rest.starts_with('/').then_some(Place::Local(rest)),
            Some(_) => None,
            None => {
                let path = location.strip_prefix("file:").unwrap_or(location);
                path.starts_with('/').then_some(Place::Local(path))
            }
        };
        place.ok_or_else(|| not_a_location(location))
    }
}

pub(super) fn not_a_location(location: &str) -> Error {
    Error::Misconfigured {
        what: format!("`{location}` is not a location that icestream can reach"),
        hint: "locations look like `s3://bucket/prefix`, `file:///absolute/path` or `/absolute/path`".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_buckets_or_absolute_paths() {
        let s3 = |bucket, key| Some(Place::S3 { bucket, key });
        for (location, expected) in [
            ("s3://lake/a/b%20c", s3("lake", "a/b%20c")),
            ("s3a://lake/a", s3("lake", "a")),
            ("s3://lake", s3("lake", "")),
            ("file:///a/b%20c", Some(Place::Local("/a/b%20c"))),
            ("file:/a", Some(Place::Local("/a"))),
            ("/a", Some(Place::Local("/a"))),
            ("s3:///a", None),
            ("file://host/a", None),
            ("a/b", None),
            ("hdfs://host/a", None),
            ("", None),
        ] {
            assert_eq!(Place::parse(location).ok(), expected, "{location}");
        }
    }
}
