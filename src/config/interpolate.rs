//! `${VAR}`, `${VAR:-default}`, `${file:/path}` and the escape `$${`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The process environment as it was when the program started, handed in so that tests can set it.
pub type Environment = BTreeMap<String, String>;

/// A value with its references replaced.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filled {
    pub(super) text: String,
    /// Whether part of it was read from a file; such a value is not repeated in messages.
    pub(super) from_file: bool,
    /// The variables it asked for.
    pub(super) variables: BTreeSet<String>,
}

/// A secret file longer than this is a mistake in the path.
const LONGEST_FILE: u64 = 1 << 20;

/// Replaces the references in `text`, or says everything that is wrong with them.
pub(super) fn fill(text: &str, environment: &Environment, folder: &Path) -> Result<Filled, Vec<String>> {
    let mut filled = Filled::default();
    let mut problems = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if let Some(before) = rest[..start].strip_suffix('$') {
            filled.text.push_str(before);
            filled.text.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        filled.text.push_str(&rest[..start]);
        let inside = &rest[start + 2..];
        let Some(end) = inside.find('}') else {
            problems.push("`${` has no closing `}`; write `$${` for the two characters themselves".to_string());
            rest = "";
            break;
        };
        match replace(&inside[..end], environment, folder, &mut filled) {
            Ok(value) => filled.text.push_str(&value),
            Err(problem) => problems.push(problem),
        }
        rest = &inside[end + 1..];
    }
    filled.text.push_str(rest);
    if problems.is_empty() { Ok(filled) } else { Err(problems) }
}

fn replace(reference: &str, environment: &Environment, folder: &Path, filled: &mut Filled) -> Result<String, String> {
    if let Some(path) = reference.strip_prefix("file:") {
        filled.from_file = true;
        return read(&folder.join(path));
    }
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let legal = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !legal {
        return Err(format!(
            "`${{{reference}}}` is not a reference; there are `${{VAR}}`, `${{VAR:-default}}` and `${{file:/path}}`"
        ));
    }
    filled.variables.insert(name.to_string());
    match (environment.get(name), default) {
        (Some(value), None) => Ok(value.clone()),
        // As in a shell, an empty variable takes the default too.
        (Some(value), Some(_)) if !value.is_empty() => Ok(value.clone()),
        (_, Some(default)) => Ok(default.to_string()),
        (None, None) => {
            Err(format!("environment variable `{name}` is not set; set it, or give a default with `${{{name}:-…}}`"))
        }
    }
}

fn read(path: &PathBuf) -> Result<String, String> {
    let refused = |error: std::io::Error| format!("file `{}` cannot be read: {}", path.display(), reason(&error));
    let length = std::fs::metadata(path).map_err(refused)?.len();
    if length > LONGEST_FILE {
        return Err(format!("file `{}` has {length} bytes; that is too long for one setting", path.display()));
    }
    let text = std::fs::read_to_string(path).map_err(refused)?;
    // Editors and `echo` end a file with a line feed that is not part of the secret.
    Ok(text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t)).to_string())
}

/// The system's reason without its number.
pub(super) fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_string(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_string(),
        std::io::ErrorKind::InvalidData => "it is not UTF-8 text".to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        [("HOST", "db"), ("EMPTY", ""), ("TRICK", "${HOST}")].map(|(k, v)| (k.to_string(), v.to_string())).into()
    }

    fn filled(text: &str) -> String {
        match fill(text, &environment(), Path::new("/nowhere")) {
            Ok(filled) => filled.text,
            Err(problems) => format!("! {}", problems.join(" ! ")),
        }
    }

    #[test]
    fn references_are_replaced_once() {
        for (text, expected) in [
            ("plain", "plain"),
            ("${HOST}:9092", "db:9092"),
            ("${HOST}${HOST}", "dbdb"),
            ("${NONE:-embedded}", "embedded"),
            ("${NONE:-}", ""),
            ("${EMPTY:-x}", "x"),
            ("${EMPTY}", ""),
            ("${TRICK}", "${HOST}"),
            ("$${HOST}", "${HOST}"),
            ("a$${b}${HOST}", "a${b}db"),
            ("$HOST costs 5$", "$HOST costs 5$"),
        ] {
            assert_eq!(filled(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_named() {
        insta::assert_snapshot!(filled("${KAFKA}"), @"! environment variable `KAFKA` is not set; set it, or give a default with `${KAFKA:-…}`");
        insta::assert_snapshot!(filled("${a b} and ${open"), @"! `${a b}` is not a reference; there are `${VAR}`, `${VAR:-default}` and `${file:/path}` ! `${` has no closing `}`; write `$${` for the two characters themselves");
        insta::assert_snapshot!(filled("${file:/no/such/file}"), @"! file `/no/such/file` cannot be read: there is no such file");
    }

    #[test]
    fn a_file_gives_its_text_without_the_last_line_feed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "s3cret\n").unwrap();
        let filled = fill("Bearer ${file:token}", &environment(), folder.path()).unwrap();
        assert_eq!((filled.text.as_str(), filled.from_file), ("Bearer s3cret", true));
    }
}
