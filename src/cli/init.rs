use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Context, Outcome};
use crate::config::{FILE_NAME, legal_name};
use crate::error::{Error, Kind, Result, Situation};
use crate::ids::{NameError, check_part};

const AFTER_HELP: &str = "\
Examples:
  icestream init                      a project in the current folder
  icestream init pipelines/shop       a project in a new folder, with the name `shop`
  icestream init . --name web_shop";

/// Make a project folder: settings, one declared table, one transform, one gold model
///
/// The folder is made when it is missing. Files that are there are never written over.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct InitArgs {
    /// The folder
    #[arg(value_name = "DIR", default_value = ".")]
    pub folder: PathBuf,

    /// The project's name [default: the folder's]
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("`{}` has files of a project already: {}", folder.display(), files.join(", "))]
    Occupied { folder: PathBuf, files: Vec<String> },
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("`{}` is no folder", folder.display())]
    NoFolder { folder: PathBuf },
    #[error("no project name can be made of the folder's name `{folder}`")]
    Nameless { folder: String },
    #[error("cannot write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Situation for InitError {
    fn kind(&self) -> Kind {
        Kind::Config
    }

    fn hint(&self) -> Option<String> {
        match self {
            InitError::NoFolder { .. } => Some("choose another place".to_string()),
            InitError::Occupied { .. } => Some("choose another folder; nothing was written".to_string()),
            InitError::Name(_) | InitError::Nameless { .. } => {
                Some("name the project with `--name`, such as `--name shop`".to_string())
            }
            InitError::Write { .. } => Some("check that this process may write there".to_string()),
        }
    }
}

pub async fn run(args: InitArgs, context: &Context) -> Result<Outcome> {
    let name = match args.name {
        Some(name) => name,
        None => name_of(&args.folder)?,
    };
    let files = write_project(&args.folder, &name)?;
    let mut text = String::new();
    for file in &files {
        text.push_str(&format!("{}\n", args.folder.join(file).display()));
    }
    context.stdout.print(&text)?;
    let there = if args.folder == Path::new(".") { String::new() } else { format!("cd {} && ", args.folder.display()) };
    context.note(&format!("project `{name}` is made; next: {there}icestream check"));
    Ok(Outcome::Done)
}

fn name_of(folder: &Path) -> Result<String> {
    let full = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
    let mut parts = full.components().filter_map(|part| match part {
        std::path::Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    });
    let last = parts.next_back().unwrap_or_default();
    let name = legal_name(&last);
    match check_part(&name) {
        Ok(()) => Ok(name),
        Err(_) => Err(InitError::Nameless { folder: last }.into()),
    }
}

/// Writes a new project, and says which files it has. Nothing is written when one of them is there already.
pub fn write_project(folder: &Path, name: &str) -> Result<Vec<&'static str>> {
    check_part(name).map_err(InitError::from)?;
    if folder.exists() && !folder.is_dir() {
        return Err(InitError::NoFolder { folder: folder.to_path_buf() }.into());
    }
    let (there, missing): (Vec<_>, Vec<_>) = FILES.iter().partition(|(file, _)| folder.join(file).exists());
    // A folder that is under version control already is as good a place as any.
    let occupied: Vec<String> =
        there.iter().filter(|(file, _)| *file != GITIGNORE).map(|(file, _)| format!("`{file}`")).collect();
    if !occupied.is_empty() {
        return Err(InitError::Occupied { folder: folder.to_path_buf(), files: occupied }.into());
    }
    for (file, template) in &missing {
        write(&folder.join(file), &template.replace("{name}", name))?;
    }
    Ok(missing.iter().map(|(file, _)| *file).collect())
}

fn write(path: &Path, text: &str) -> Result<()> {
    let refused = |source| Error::from(InitError::Write { path: path.to_path_buf(), source });
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(refused)?;
    }
    // Made new or not at all: another process may have come first.
    let mut file = fs::File::create_new(path).map_err(refused)?;
    file.write_all(text.as_bytes()).map_err(refused)
}

const GITIGNORE: &str = ".gitignore";

const FILES: [(&str, &str); 5] = [
    (
        FILE_NAME,
        r#"# The settings of this project. Only the name has to be set; what stands behind a `#` is the default or an example.
# `icestream config reference` describes every key, `icestream check` finds what is wrong.

name: {name}

# Where tables are registered: sqlite (a file), rest (Polaris, Nessie, Lakekeeper, …) or glue (AWS).
catalog:
  type: sqlite
  uri: lake/catalog.db

# Where their files are: a folder, or s3://bucket/prefix.
warehouse: lake/warehouse

# namespaces: { bronze: {name}_bronze, silver: {name}_silver, gold: {name}_gold }

source:
  kafka:
    brokers: "${KAFKA_BROKERS:-localhost:9092}"
    topics: ["{name}.public.*"]
    # Secrets stand here only as references, such as "${KAFKA_PASSWORD}" or "${file:/run/secrets/kafka}".
    # properties: { security.protocol: SASL_SSL, sasl.mechanism: PLAIN, sasl.username: me, sasl.password: "${KAFKA_PASSWORD}" }
  format: debezium-json

# commit: { every: 10s, rows: 500000, bytes: 256MiB }
# memory: 2GiB
# build: { every: 1m }
"#,
    ),
    (
        "catalog/orders.yaml",
        r#"# What is known about one captured table. The file's name is the table's name; every key is optional.

topic: {name}.public.orders
key: [id]

# The columns with their exact types. Without them, rows stay JSON text in bronze.
columns:
  - { name: id, type: int }
  - { name: customer_id, type: int }
  - { name: status, type: string }
  - { name: total_amount, type: "decimal(10,2)", encoding: base64, doc: "decimal.handling.mode=precise" }
  - { name: created_at, type: timestamptz }

# partition: ["day(_ingested_at)"]
"#,
    ),
    (
        "transforms/orders.sql",
        r#"/* icestream
table: orders
from: orders
keys: [id]
on_delete: remove
*/
SELECT
  id,
  customer_id,
  lower(status) AS status,
  total_amount,
  created_at
FROM changes
"#,
    ),
    (
        "sql/gold/revenue_per_day.sql",
        r#"/* icestream
refresh: full
*/
SELECT
  CAST(created_at AS DATE) AS day,
  count(*) AS orders,
  sum(total_amount) AS revenue
FROM {name}_silver.orders
GROUP BY 1
"#,
    ),
    (GITIGNORE, "/lake/\n"),
];
