//! Addresses, folders and topics as texts: which are legal, and where they lead.

use std::path::{Component, Path, PathBuf};

use url::Url;

pub(super) fn check_http(text: &str) -> Result<(), String> {
    let wanted = || format!("`{text}` is not an address; write `https://host:port/path`");
    let url = Url::parse(text).map_err(|_| wanted())?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(wanted());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an address must not carry a user or a password".to_string());
    }
    Ok(())
}

pub(super) fn check_warehouse(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty; write a folder or `s3://bucket/prefix`".to_string());
    }
    let Some((scheme, rest)) = text.split_once("://") else { return Ok(()) };
    match scheme {
        "file" if rest.starts_with('/') => Ok(()),
        "file" => Err(format!("`{text}` names no absolute folder; write `file:///folder`, with three slashes")),
        "s3" if rest.trim_start_matches('/').is_empty() => Err(format!("`{text}` names no bucket")),
        "s3" if rest.starts_with('/') => Err(format!("`{text}` names no bucket; write `s3://bucket/prefix`")),
        "s3" => Ok(()),
        "s3a" | "s3n" => Err(format!("`{text}` must start with `s3://`, which is what Iceberg's readers expect")),
        _ => Err(format!("`{scheme}://` is not supported; write a folder, `file:///folder` or `s3://bucket/prefix`")),
    }
}

pub(super) fn check_file(text: &str) -> Result<(), String> {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    match scheme {
        _ if text.is_empty() => Err("is empty; write the path of a file".to_string()),
        Some(_) => Err(format!("`{text}` is an address; write the path of the file alone")),
        None if text.ends_with('/') => Err(format!("`{text}` is a folder; write the path of a file")),
        None => Ok(()),
    }
}

/// The brokers' name for the one inside the process.
pub(super) const EMBEDDED: &str = "embedded";

pub(super) fn check_brokers(text: &str) -> Result<(), String> {
    if text == EMBEDDED {
        return Ok(());
    }
    for broker in text.split(',').map(str::trim) {
        let port =
            broker.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, p)| p.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) || broker.contains(char::is_whitespace) {
            return Err(format!("`{broker}` is not a broker; write `host:port`, with commas between, or `embedded`"));
        }
    }
    Ok(())
}

/// Where to listen: an address of this machine and a port.
pub(super) fn check_listen(text: &str) -> Result<(), String> {
    let host = text.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map(|(host, _)| host);
    match host {
        Some(host) if !host.is_empty() && !host.contains(['/', ' ']) => Ok(()),
        _ => Err(format!("`{text}` is no place to listen at; write `address:port`, such as `127.0.0.1:9464`")),
    }
}

/// Kafka's own rule, with `*` allowed in a pattern.
pub(super) fn check_topic(text: &str, pattern: bool) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c) || (pattern && c == '*');
    if text.is_empty() || text.len() > 249 || !text.chars().all(legal) {
        let star = if pattern { ", and `*` for any of them" } else { "" };
        return Err(format!("`{text}` is not a topic; topics have letters, digits, `.`, `_` and `-`{star}"));
    }
    Ok(())
}

/// Whether `topic` fits `pattern`, in which `*` stands for any characters.
pub(super) fn matches(pattern: &str, topic: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| topic.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// The full location of a warehouse: `s3://bucket/prefix` or `file:///absolute/folder`, with no slash at the end.
pub(super) fn warehouse(text: &str, project: &Path) -> String {
    if text.starts_with("s3://") {
        return text.trim_end_matches('/').to_string();
    }
    let folder = absolute(text.strip_prefix("file://").unwrap_or(text), project);
    format!("file://{}", folder.to_string_lossy().trim_end_matches('/'))
}

/// A path seen from the project folder, without `.` and `..`.
pub(super) fn absolute(path: &str, project: &Path) -> PathBuf {
    let mut absolute = PathBuf::new();
    for part in project.join(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                absolute.pop();
            }
            part => absolute.push(part),
        }
    }
    absolute
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warehouse_becomes_a_full_location() {
        let project = Path::new("/data/shop");
        for (text, expected) in [
            ("lake/warehouse", "file:///data/shop/lake/warehouse"),
            ("./lake/../warehouse/", "file:///data/shop/warehouse"),
            ("/mnt/lake", "file:///mnt/lake"),
            ("file:///mnt/lake/", "file:///mnt/lake"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("s3://bucket", "s3://bucket"),
        ] {
            check_warehouse(text).unwrap();
            assert_eq!(warehouse(text, project), expected);
        }
        for bad in ["", "s3://", "s3:///x", "s3a://b/x", "gs://b", "file://x", "hdfs://n/x"] {
            assert!(check_warehouse(bad).is_err(), "{bad} should be refused");
        }
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, topic, expected) in [
            ("shop.public.*", "shop.public.orders", true),
            ("shop.public.*", "shop.publicorders", false),
            ("shop.*.orders", "shop.a.b.orders", true),
            ("shop.*.orders", "shop.orders", false),
            ("*", "anything", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "a-c-b", false),
            ("*aa", "aa", true),
            ("ab*ba", "aba", false),
            ("orders", "orders", true),
            ("orders", "orders2", false),
        ] {
            assert_eq!(matches(pattern, topic), expected, "{pattern} {topic}");
        }
    }

    #[test]
    fn addresses_of_brokers_and_servers() {
        for good in ["embedded", "a:9092", "a:9092, b.c:1", "[::1]:9092"] {
            check_brokers(good).unwrap();
        }
        for bad in ["", "kafka", ":9092", "a:0", "a:70000", "a:9092,", "a b:1"] {
            assert!(check_brokers(bad).is_err(), "{bad} should be refused");
        }
        for good in ["http://localhost:8181", "https://h/api/catalog"] {
            check_http(good).unwrap();
        }
        for bad in ["localhost:8181", "s3://b", "http://", "https://user:pw@h", "catalog"] {
            assert!(check_http(bad).is_err(), "{bad} should be refused");
        }
    }
}
