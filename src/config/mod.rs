//! From the files, variables and flags of a user to the configuration the program runs with.
//!
//! - In: a project folder (`icestream.yaml`, `catalog/*.yaml`, `transforms/*.sql`, `sql/gold/*.sql`,
//!   `sql/audits/*.sql`), the environment,
//!   `--set` flags. A flag wins over a variable, a variable over the file, the file over the default.
//! - Out: [`Config`], in which every value is parsed, every location is absolute and every reference is replaced; or
//!   [`ConfigProblems`], which names everything that is wrong, not just the first thing.
//! - It does not know: catalogs, storage, Kafka, SQL. Nothing is opened or asked here but the files named above.
//!
//! There are two configurations: `settings` is what a user writes, [`Config`] what the program runs with. The comments
//! on `settings` are the documentation: the reference page and the JSON schema are made from them.

mod check;
mod environment;
mod expect;
mod interpolate;
mod location;
mod model;
mod problem;
mod quantity;
mod reference;
mod schema;
mod secret;
mod settings;
mod show;
mod table;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use check::{Checker, Written};
use schema::SCHEMAS;
use settings::{CatalogSettings, Settings, TableSettings};

use crate::error::{Kind, Situation};
use crate::evolution::Evolution;
use crate::ids::check_part;
use crate::placeholder::Placeholder;

pub use expect::Expectation;
pub use interpolate::Environment;
pub use model::{Audit, GoldModel, SilverModel, Sql};
pub use problem::{ConfigProblems, Place, Problem};
pub use quantity::{Percent, QuantityError, Size, Span};
pub use reference::{json_schema, reference};
pub use secret::{MASK, Secret, is_secret_name};
pub use settings::{Format, KafkaAuth, KafkaProperties, OnDelete, Refresh};
pub use table::{FieldError, PartitionField, TableConfig, Transform};

pub(crate) use check::legal_name;

/// The file that makes a folder a project.
pub const FILE_NAME: &str = "icestream.yaml";

/// What the program runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The project folder, absolute.
    pub project_dir: PathBuf,
    /// The project's name; the SQLite catalog keeps its tables under it.
    pub name: String,
    pub catalog: CatalogConfig,
    /// `s3://bucket/prefix` or `file:///absolute/folder`, with no slash at the end.
    pub warehouse: String,
    pub s3: S3Config,
    pub namespaces: Namespaces,
    pub kafka: KafkaConfig,
    /// Files to read in place of topics.
    pub source_files: Option<FilesConfig>,
    pub format: Format,
    /// What stands in records for values that were not sent.
    pub placeholder: Arc<Placeholder>,
    pub commit: CommitConfig,
    /// The share of rejected records above which a table is stopped; see [`Config::stop_above`].
    pub stop_above: Option<Percent>,
    pub memory_bytes: u64,
    /// How often silver and gold are brought up to date.
    pub build_every: Duration,
    /// How long findings of rules and audits are kept.
    pub keep_findings: Duration,
    pub maintain: MaintainConfig,
    /// Where metrics and probes are answered, `address:port`.
    pub metrics_listen: Option<String>,
    /// What is done with records whose columns are others than their table's, where no file speaks of the table.
    pub evolution: Evolution,
    /// Tables that have a file in `catalog/`, by name.
    pub tables: Vec<TableConfig>,
    /// The files of `transforms/`, by name.
    pub silver: Vec<SilverModel>,
    /// The files of `sql/gold/`, by name.
    pub gold: Vec<GoldModel>,
    /// The files of `sql/audits/`, by name.
    pub audits: Vec<Audit>,
    /// How many files were read.
    pub files: usize,
    settings: Arc<Written<Settings>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatalogConfig {
    Sqlite {
        /// The database file, absolute.
        path: PathBuf,
    },
    Rest {
        uri: String,
        warehouse: Option<String>,
        /// `client_id:client_secret`.
        credential: Option<Secret>,
        token: Option<Secret>,
        scope: Option<String>,
        oauth2_server_uri: Option<String>,
        sigv4: Option<SigV4Config>,
        prefix: Option<String>,
    },
    Glue {
        region: Option<String>,
        endpoint: Option<String>,
        catalog_id: Option<String>,
        profile: Option<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigV4Config {
    pub service: String,
    pub region: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct S3Config {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub profile: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<Secret>,
    pub session_token: Option<Secret>,
    pub path_style: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespaces {
    pub bronze: String,
    pub silver: String,
    pub gold: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// `None` where the project does not say; a verb that ingests needs it.
    pub brokers: Option<Brokers>,
    pub group: String,
    pub topics: Vec<TopicPattern>,
    /// How often to look for new topics and partitions.
    pub discover_every: Duration,
    pub properties: KafkaProperties,
    pub auth: KafkaAuth,
    pub aws_region: Option<String>,
    pub aws_profile: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesConfig {
    /// `s3://bucket/path` or `file:///absolute/path`, which may hold `*`.
    pub locations: Vec<String>,
    pub topic: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Brokers {
    /// The broker inside the process that `demo` uses.
    Embedded,
    /// Addresses, `host:port` with commas between.
    At(String),
}

/// A topic's name, in which `*` stands for any characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPattern(String);

impl TopicPattern {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The topic, where the pattern has no `*` and names just one.
    pub fn literal(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(self.0.as_str())
    }

    pub fn matches(&self, topic: &str) -> bool {
        location::matches(&self.0, topic)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitConfig {
    pub every: Duration,
    pub rows: u64,
    pub bytes: u64,
}

/// What maintenance aims at, for tables whose properties say nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaintainConfig {
    /// The size of a full data file.
    pub target_bytes: u64,
    pub keep_snapshots_for: Duration,
    /// So many stay, however old.
    pub keep_snapshots: usize,
    /// No more stay, however young.
    pub max_snapshots: usize,
    pub orphans_after: Duration,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("there is no folder `{}`", folder.display())]
    NoFolder { folder: PathBuf },
    #[error("there is no `icestream.yaml` in `{}`", folder.display())]
    NoProject {
        folder: PathBuf,
        /// A folder further up that is a project.
        above: Option<PathBuf>,
    },
    #[error("`{}` cannot be read", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Problems(#[from] ConfigProblems),
}

impl Situation for ConfigError {
    fn kind(&self) -> Kind {
        Kind::Config
    }

    fn hint(&self) -> Option<String> {
        match self {
            ConfigError::NoFolder { .. } => Some("name a project folder with `--project`".to_string()),
            ConfigError::NoProject { above: Some(above), .. } => {
                Some(format!("a project is further up: add `--project {}`", above.display()))
            }
            ConfigError::NoProject { .. } => {
                Some("`icestream init` makes a project here; `--project` names one that is elsewhere".to_string())
            }
            ConfigError::Unreadable { .. } => None,
            ConfigError::Problems(problems) => problems.hint(),
        }
    }
}

impl Config {
    /// Reads the project in a folder. `assignments` are the `key=value` texts of `--set`.
    pub fn load(project: &Path, environment: &Environment, assignments: &[String]) -> Result<Config, ConfigError> {
        let project_dir = project.canonicalize().ok().filter(|folder| folder.is_dir());
        let project_dir = project_dir.ok_or_else(|| ConfigError::NoFolder { folder: project.to_path_buf() })?;
        if !project_dir.join(FILE_NAME).is_file() {
            let above = project_dir.ancestors().skip(1).find(|folder| folder.join(FILE_NAME).is_file());
            return Err(ConfigError::NoProject { above: above.map(Path::to_path_buf), folder: project_dir });
        }
        let mut checker =
            Checker { environment, folder: &project_dir, problems: Vec::new(), variables: Default::default() };
        let settings = read_settings(&mut checker, assignments)?;
        let mut files = 1;
        let mut tables: Vec<TableConfig> = Vec::new();
        let evolution = settings.as_ref().map_or_else(Evolution::default, |written| written.settings.evolution);
        for found in list(&project_dir, "catalog", &["yaml", "yml"], &mut checker)? {
            files += 1;
            read_table(&found, evolution, &mut tables, &mut checker)?;
        }
        let namespaces = match &settings {
            Some(written) => namespaces(written, &mut checker),
            // Wherever the main file is broken, the models' own problems are still worth finding.
            None => Namespaces { bronze: "bronze".into(), silver: "silver".into(), gold: "gold".into() },
        };
        let mut silver: Vec<SilverModel> = Vec::new();
        for found in list(&project_dir, "transforms", &["sql"], &mut checker)? {
            files += 1;
            let Some(text) = found.text(&mut checker)? else { continue };
            let file = (&found.shown, found.path.as_path());
            silver.extend(model::silver(&found.name, file, &text, &namespaces, &tables, &mut checker));
        }
        let mut gold: Vec<GoldModel> = Vec::new();
        for found in list(&project_dir, "sql/gold", &["sql"], &mut checker)? {
            files += 1;
            let Some(text) = found.text(&mut checker)? else { continue };
            let file = (&found.shown, found.path.as_path());
            gold.extend(model::gold(&found.name, file, &text, &namespaces, &mut checker));
        }
        let mut audits: Vec<Audit> = Vec::new();
        for found in list(&project_dir, "sql/audits", &["sql"], &mut checker)? {
            files += 1;
            let Some(text) = found.text(&mut checker)? else { continue };
            let file = (&found.shown, found.path.as_path());
            audits.extend(model::audit(&found.name, file, &text, &mut checker));
        }
        same_table(silver.iter().map(|m| (&m.table, &m.sql.file)), &mut checker);
        same_table(gold.iter().map(|m| (&m.table, &m.sql.file)), &mut checker);
        if let Some(written) = &settings {
            cross_check(written, &mut checker);
        }
        let misspelt = environment::misspelt(&SCHEMAS.project, environment, &checker.variables);
        checker.problems.extend(misspelt);
        if let Some(problems) = ConfigProblems::from_list(checker.problems) {
            return Err(problems.into());
        }
        let Some(written) = settings else {
            // Settings are only missing where a problem says why.
            return Err(ConfigError::NoProject { folder: project_dir, above: None });
        };
        Ok(resolve(project_dir, written, namespaces, Models { tables, silver, gold, audits, files }))
    }

    /// The declared table that a topic carries.
    pub fn table_of_topic(&self, topic: &str) -> Option<&TableConfig> {
        let last = topic.rsplit('.').next().unwrap_or(topic);
        let named = self.tables.iter().find(|table| table.topic.as_deref() == Some(topic));
        named.or_else(|| self.tables.iter().find(|table| table.topic.is_none() && table.name == last))
    }

    /// The share of rejected records above which a bronze table is stopped.
    pub fn stop_above(&self, table: &crate::ids::TableName) -> Option<Percent> {
        let declared = self.tables.iter().find(|declared| declared.name == table.name());
        declared.and_then(|declared| declared.stop_above).or(self.stop_above)
    }

    /// Whether the project reads a topic.
    pub fn reads_topic(&self, topic: &str) -> bool {
        self.kafka.topics.iter().any(|pattern| pattern.matches(topic))
    }

    /// The settings in force as YAML, each with where it comes from. Secrets are masked.
    pub fn show(&self) -> String {
        show::show(self)
    }
}

/// Whether a text names a place to listen at.
pub fn check_listen(text: &str) -> Result<(), String> {
    location::check_listen(text)
}

/// The full location, `s3://…` or `file:///…`, that a person means by a text, seen from a folder.
pub fn full_location(text: &str, folder: &Path) -> Result<String, String> {
    location::check_warehouse(text)?;
    Ok(location::warehouse(text, folder))
}

struct Models {
    tables: Vec<TableConfig>,
    silver: Vec<SilverModel>,
    gold: Vec<GoldModel>,
    audits: Vec<Audit>,
    files: usize,
}

fn read_settings(checker: &mut Checker<'_>, assignments: &[String]) -> Result<Option<Written<Settings>>, ConfigError> {
    let found = Found { name: FILE_NAME.to_string(), shown: FILE_NAME.into(), path: checker.folder.join(FILE_NAME) };
    let Some(text) = found.text(checker)? else { return Ok(None) };
    let schema = &SCHEMAS.project;
    match yaml::parse(&found.shown, &text) {
        Ok(mut root) => {
            environment::overlay(&mut root, schema, checker.environment);
            checker.problems.extend(environment::set(&mut root, schema, assignments));
            Ok(checker.read::<Settings>(&root, schema))
        }
        Err(problem) => {
            checker.problems.push(problem);
            Ok(None)
        }
    }
}

fn read_table(
    found: &Found,
    evolution: Evolution,
    tables: &mut Vec<TableConfig>,
    checker: &mut Checker<'_>,
) -> Result<(), ConfigError> {
    let problem = |checker: &mut Checker<'_>, path: &str, message: String| {
        let place = Place::File(found.shown.clone());
        checker.problems.push(Problem { place, path: path.to_string(), message });
    };
    if let Err(error) = check_part(&found.name) {
        problem(checker, "", format!("the file's name is the table's name: {error}"));
        return Ok(());
    }
    let Some(text) = found.text(checker)? else { return Ok(()) };
    let root = match yaml::parse(&found.shown, &text) {
        Ok(root) => root,
        Err(problem) => {
            checker.problems.push(problem);
            return Ok(());
        }
    };
    let Some(written) = checker.read::<TableSettings>(&root, &SCHEMAS.table) else { return Ok(()) };
    if let Some(other) = tables.iter().find(|table| table.name == found.name) {
        let other = other.file.file_name().unwrap_or_default().to_string_lossy();
        problem(checker, "", format!("table `{}` has a file already: `{other}`", found.name));
        return Ok(());
    }
    match table::resolve(&found.name, found.path.clone(), &written, evolution) {
        Ok(table) => {
            let twin = tables.iter().find(|other| table.topic.is_some() && other.topic == table.topic);
            if let Some(twin) = twin {
                checker
                    .problems
                    .push(written.problem("topic", format!("table `{}` has this topic already", twin.name)));
            }
            tables.push(table);
        }
        Err(problems) => checker.problems.extend(problems),
    }
    Ok(())
}

/// A file of the project.
struct Found {
    /// Its name without its ending.
    name: String,
    /// Its path seen from the project folder.
    shown: Arc<str>,
    path: PathBuf,
}

impl Found {
    fn text(&self, checker: &mut Checker<'_>) -> Result<Option<String>, ConfigError> {
        let bytes =
            std::fs::read(&self.path).map_err(|source| ConfigError::Unreadable { path: self.path.clone(), source })?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) => {
                let place = Place::File(self.shown.clone());
                let message = "the file is not UTF-8 text".to_string();
                checker.problems.push(Problem { place, path: String::new(), message });
                Ok(None)
            }
        }
    }
}

/// The files of a folder with one of the endings, by name. A folder that is not there has none.
fn list(project: &Path, folder: &str, endings: &[&str], checker: &mut Checker<'_>) -> Result<Vec<Found>, ConfigError> {
    let path = project.join(folder);
    let unreadable = |source| ConfigError::Unreadable { path: path.clone(), source };
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Editors leave hidden files next to the ones they have open.
        if !endings.contains(&ending) || file_name.starts_with('.') || !path.is_file() {
            continue;
        }
        let shown: Arc<str> = format!("{folder}/{file_name}").into();
        match path.file_stem().and_then(|stem| stem.to_str()) {
            Some(stem) => found.push(Found { name: stem.to_string(), shown, path: path.clone() }),
            None => {
                let message = "the file's name is not UTF-8 text".to_string();
                checker.problems.push(Problem { place: Place::File(shown), path: String::new(), message });
            }
        }
    }
    found.sort_by(|a, b| a.shown.cmp(&b.shown));
    Ok(found)
}

fn same_table<'a>(models: impl Iterator<Item = (&'a crate::ids::TableName, &'a PathBuf)>, checker: &mut Checker<'_>) {
    let mut first: BTreeMap<&crate::ids::TableName, &PathBuf> = BTreeMap::new();
    for (table, file) in models {
        let shown = |path: &Path| path.strip_prefix(checker.folder).unwrap_or(path).display().to_string();
        if let Some(other) = first.insert(table, file) {
            let place = Place::File(shown(file).into());
            let message = format!("`{}` makes table `{table}` already", shown(other));
            checker.problems.push(Problem { place, path: "table".to_string(), message });
        }
    }
}

fn namespaces(written: &Written<Settings>, checker: &mut Checker<'_>) -> Namespaces {
    let settings = &written.settings;
    let or_named = |own: &Option<String>, layer: &str| match own {
        Some(own) => own.clone(),
        None => format!("{}_{layer}", settings.name),
    };
    let namespaces = Namespaces {
        bronze: or_named(&settings.namespaces.bronze, "bronze"),
        silver: or_named(&settings.namespaces.silver, "silver"),
        gold: or_named(&settings.namespaces.gold, "gold"),
    };
    let Namespaces { bronze, silver, gold } = &namespaces;
    if bronze == silver || silver == gold || bronze == gold {
        let message = "two layers share a namespace, and their tables would share names; give each its own";
        checker.problems.push(written.problem("namespaces", message));
    }
    namespaces
}

/// Client properties that would work against the exactly-once path, or say again what another key says.
const OWNED_PROPERTIES: [(&str, &str); 10] = [
    ("bootstrap.servers", "write it as `source.kafka.brokers`"),
    ("metadata.broker.list", "write it as `source.kafka.brokers`"),
    ("group.id", "write it as `source.kafka.group`"),
    ("enable.auto.commit", "icestream keeps its offsets in the tables"),
    ("enable.auto.offset.store", "icestream keeps its offsets in the tables"),
    ("auto.offset.reset", "icestream never jumps to another offset by itself"),
    ("enable.partition.eof", "icestream has to see where a partition ends"),
    ("group.protocol", "processes share partitions in the way all brokers know"),
    ("partition.assignment.strategy", "processes share partitions by `cooperative-sticky`"),
    ("topic.blacklist", "it follows from `source.kafka.topics`"),
];

/// What no single key is to blame for.
fn cross_check(written: &Written<Settings>, checker: &mut Checker<'_>) {
    let settings = &written.settings;
    let mut problem = |path: &str, message: &str| checker.problems.push(written.problem(path, message));
    if let CatalogSettings::Rest { credential, token, sigv4, .. } = &settings.catalog {
        if let Some(credential) = credential
            && !credential.expose().contains(':')
        {
            problem("catalog.credential", "must have the form `client_id:client_secret`");
        }
        let ways = [credential.is_some(), token.is_some(), sigv4.is_some()];
        if ways.iter().filter(|way| **way).count() > 1 {
            problem("catalog", "`credential`, `token` and `sigv4` exclude one another; keep one");
        }
    }
    let kafka = &settings.source.kafka;
    if kafka.auth != KafkaAuth::AwsMskIam {
        let of_msk = [("source.kafka.aws_region", &kafka.aws_region), ("source.kafka.aws_profile", &kafka.aws_profile)];
        for (path, _) in of_msk.iter().filter(|(_, value)| value.is_some()) {
            problem(path, "is for `auth: aws-msk-iam` alone");
        }
    }
    let s3 = &settings.storage.s3;
    match (&s3.access_key_id, &s3.secret_access_key) {
        (Some(_), None) => problem("storage.s3.access_key_id", "needs `secret_access_key` beside it"),
        (None, Some(_)) => problem("storage.s3.secret_access_key", "needs `access_key_id` beside it"),
        (None, None) if s3.session_token.is_some() => {
            problem("storage.s3.session_token", "needs `access_key_id` and `secret_access_key` beside it");
        }
        _ => {}
    }
    if settings.source.files.is_some() && !settings.source.kafka.topics.is_empty() {
        problem("source.files", "files are read in place of topics; keep `files` or `kafka.topics`");
    }
    for (name, _) in settings.source.kafka.properties.expose() {
        if let Some((_, advice)) = OWNED_PROPERTIES.iter().find(|(owned, _)| *owned == name) {
            problem(&format!("source.kafka.properties.{name}"), &format!("cannot be set here: {advice}"));
        }
    }
}

fn resolve(project_dir: PathBuf, mut written: Written<Settings>, namespaces: Namespaces, models: Models) -> Config {
    let settings = &mut written.settings;
    let group = settings.source.kafka.group.get_or_insert_with(|| format!("icestream-{}", settings.name)).clone();
    settings.namespaces.bronze = Some(namespaces.bronze.clone());
    settings.namespaces.silver = Some(namespaces.silver.clone());
    settings.namespaces.gold = Some(namespaces.gold.clone());
    let settings = settings.clone();
    let catalog = match settings.catalog {
        CatalogSettings::Sqlite { uri } => CatalogConfig::Sqlite { path: location::absolute(&uri, &project_dir) },
        CatalogSettings::Rest { uri, warehouse, credential, token, scope, oauth2_server_uri, sigv4, prefix } => {
            CatalogConfig::Rest {
                uri,
                warehouse,
                credential,
                token,
                scope,
                oauth2_server_uri,
                sigv4: sigv4.map(|sigv4| SigV4Config { service: sigv4.service, region: sigv4.region }),
                prefix,
            }
        }
        CatalogSettings::Glue { region, endpoint, catalog_id, profile } => {
            CatalogConfig::Glue { region, endpoint, catalog_id, profile }
        }
    };
    let s3 = settings.storage.s3;
    let kafka = settings.source.kafka;
    let source_files = settings.source.files.map(|files| FilesConfig {
        locations: files.paths.iter().map(|path| location::warehouse(path, &project_dir)).collect(),
        topic: files.topic,
    });
    Config {
        name: settings.name,
        catalog,
        warehouse: location::warehouse(&settings.warehouse, &project_dir),
        s3: S3Config {
            endpoint: s3.endpoint,
            region: s3.region,
            profile: s3.profile,
            access_key_id: s3.access_key_id,
            secret_access_key: s3.secret_access_key,
            session_token: s3.session_token,
            path_style: s3.path_style,
        },
        namespaces,
        kafka: KafkaConfig {
            brokers: kafka.brokers.map(|brokers| match brokers.as_str() {
                location::EMBEDDED => Brokers::Embedded,
                _ => Brokers::At(brokers),
            }),
            group,
            topics: kafka.topics.into_iter().map(TopicPattern).collect(),
            discover_every: kafka.discover_every.0,
            properties: kafka.properties,
            auth: kafka.auth,
            aws_region: kafka.aws_region,
            aws_profile: kafka.aws_profile,
        },
        source_files,
        format: settings.source.format,
        // Checked with all other texts.
        placeholder: Arc::new(Placeholder::parse(&settings.source.unavailable_placeholder).unwrap_or_default()),
        commit: CommitConfig {
            every: settings.commit.every.0,
            rows: settings.commit.rows,
            bytes: settings.commit.bytes.0,
        },
        stop_above: settings.rejects.stop_above,
        memory_bytes: settings.memory.0,
        build_every: settings.build.every.0,
        keep_findings: settings.build.keep_findings.0,
        maintain: MaintainConfig {
            target_bytes: settings.maintain.target_size.0,
            keep_snapshots_for: settings.maintain.keep_snapshots_for.0,
            keep_snapshots: usize::try_from(settings.maintain.keep_snapshots).unwrap_or(usize::MAX),
            max_snapshots: usize::try_from(settings.maintain.max_snapshots).unwrap_or(usize::MAX),
            orphans_after: settings.maintain.orphans_after.0,
        },
        metrics_listen: settings.metrics.listen,
        evolution: settings.evolution,
        tables: models.tables,
        silver: models.silver,
        gold: models.gold,
        audits: models.audits,
        files: models.files,
        settings: Arc::new(written),
        project_dir,
    }
}
