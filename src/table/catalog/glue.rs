//! The AWS Glue Data Catalog.
//!
//! The pointer is a parameter of the Glue table, and `UpdateTable` with the version that was read is the
//! compare-and-swap. The Iceberg crate's own Glue catalog is not used: it refuses `timestamptz` columns, lists columns
//! of old schemas twice, and drops the parameters that other programs put on the table.
//!
//! The SDK's own retries are off. A swap that is repeated after its answer got lost meets its own success as somebody
//! else's, and would be reported as lost although it was applied.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;

use async_trait::async_trait;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_glue::Client;
use aws_sdk_glue::config::retry::RetryConfig;
use aws_sdk_glue::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_glue::types::{Column, DatabaseInput, StorageDescriptor, Table, TableInput};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use iceberg::spec::{PrimitiveType, Schema, Type};
use iceberg::{TableRequirement, TableUpdate};

use super::pointer::Staged;
use super::{Catalog, Head, NewTable, Swap, backoff, pointer};
use crate::aws::{self, AwsOptions};
use crate::ids::{TableName, check_part};
use crate::table::error::{Error, Result};
use crate::table::storage::{self, Storage};

const TABLE_TYPE: &str = "table_type";
const METADATA_LOCATION: &str = "metadata_location";
const PREVIOUS_METADATA_LOCATION: &str = "previous_metadata_location";

/// How to reach a Glue catalog.
#[derive(Debug, Clone, Default)]
pub struct GlueOptions {
    /// For servers that speak Glue's protocol elsewhere.
    pub endpoint: Option<String>,
    /// The account whose catalog it is, when it is not the caller's.
    pub catalog_id: Option<String>,
    pub aws: AwsOptions,
    /// Where tables go that are made without a location: `s3://bucket/prefix`.
    pub warehouse: String,
}

/// A Glue catalog of one account in one region.
pub struct GlueCatalog {
    client: Client,
    region: String,
    options: GlueOptions,
    storage: Storage,
}

impl GlueCatalog {
    pub async fn open(options: GlueOptions, storage: Storage) -> Result<Self> {
        let config = aws::sdk_config(&options.aws, options.endpoint.as_deref()).await?;
        let region = aws::region(&config)?;
        let config = aws_sdk_glue::config::Builder::from(&config).retry_config(RetryConfig::disabled()).build();
        Ok(GlueCatalog { client: Client::from_conf(config), region, options, storage })
    }

    /// The table as Glue has it, when it is an Iceberg table.
    async fn glue_table(&self, table: &TableName) -> Result<(Table, String)> {
        let request = self.client.get_table().database_name(table.namespace()).name(table.name());
        let request = request.set_catalog_id(self.options.catalog_id.clone());
        let answer = match ask(|| request.clone().send()).await {
            Ok(answer) => answer,
            Err(error) if meaning(&error) == Meaning::Missing => return Err(self.missing(table)),
            Err(error) => return Err(self.failure("read the table", error)),
        };
        let found = answer.table.ok_or_else(|| self.missing(table))?;
        if !is_iceberg(&found) {
            let kind = parameter(&found, TABLE_TYPE).or(found.table_type()).unwrap_or("of no type");
            return Err(self.not_iceberg(table, format!("its type is `{kind}`")));
        }
        match parameter(&found, METADATA_LOCATION).map(str::to_string) {
            Some(location) => Ok((found, location)),
            None => Err(self.not_iceberg(table, format!("it has no `{METADATA_LOCATION}`"))),
        }
    }

    fn missing(&self, table: &TableName) -> Error {
        Error::TableMissing { table: table.clone(), catalog: self.describe() }
    }

    fn not_iceberg(&self, table: &TableName, found: String) -> Error {
        Error::NotIceberg { table: table.clone(), catalog: self.describe(), found }
    }

    fn failure<E>(&self, action: &str, error: SdkError<E, HttpResponse>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        if let Some(error) = without_credentials(&error) {
            return aws::credentials_failure(error).into();
        }
        match meaning(&error) {
            Meaning::Throttled | Meaning::NotSent | Meaning::Doubtful => {
                Error::unreachable(self.describe(), told(&error))
            }
            Meaning::Denied => Error::denied(self.describe(), told(&error)),
            Meaning::Missing | Meaning::Exists | Meaning::Conflict | Meaning::Refused => Error::Misconfigured {
                what: format!("{} refused to {action}: {}", self.describe(), told(&error)),
                hint: "check the names, the region and the limits of the account".to_string(),
            },
        }
    }
}

impl fmt::Debug for GlueCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GlueCatalog").field("region", &self.region).field("options", &self.options).finish()
    }
}

#[async_trait]
impl Catalog for GlueCatalog {
    fn describe(&self) -> String {
        match &self.options.endpoint {
            Some(endpoint) => format!("Glue catalog at `{endpoint}`"),
            None => format!("Glue catalog in `{}`", self.region),
        }
    }

    async fn namespaces(&self) -> Result<Vec<String>> {
        let (mut names, mut page) = (Vec::new(), None);
        loop {
            let request = self.client.get_databases().set_next_token(page);
            let request = request.set_catalog_id(self.options.catalog_id.clone());
            let answer = ask(|| request.clone().send()).await;
            let answer = answer.map_err(|error| self.failure("list databases", error))?;
            names.extend(answer.database_list.into_iter().map(|database| database.name));
            page = answer.next_token.filter(|token| !token.is_empty());
            if page.is_none() {
                names.sort();
                return Ok(names);
            }
        }
    }

    async fn create_namespace(&self, namespace: &str) -> Result<()> {
        check_part(namespace)?;
        let request = self.client.get_database().name(namespace);
        let request = request.set_catalog_id(self.options.catalog_id.clone());
        match ask(|| request.clone().send()).await {
            Ok(_) => return Ok(()),
            Err(error) if meaning(&error) == Meaning::Missing => {}
            Err(error) => return Err(self.failure("read the database", error)),
        }
        let location = format!("{}/{namespace}", self.options.warehouse.trim_end_matches('/'));
        let input = DatabaseInput::builder().name(namespace).location_uri(location).build();
        let input = input.map_err(|error| incomplete(&error))?;
        let request = self.client.create_database().database_input(input);
        let request = request.set_catalog_id(self.options.catalog_id.clone());
        // Repeating it is harmless: made twice is made.
        match ask(|| request.clone().send()).await {
            Ok(_) => Ok(()),
            Err(error) if meaning(&error) == Meaning::Exists => Ok(()),
            Err(error) => Err(self.failure("make the database", error)),
        }
    }

    async fn tables(&self, namespace: &str) -> Result<Vec<TableName>> {
        let (mut names, mut page) = (Vec::new(), None);
        loop {
            let request = self.client.get_tables().database_name(namespace).set_next_token(page);
            let request = request.set_catalog_id(self.options.catalog_id.clone());
            let answer = match ask(|| request.clone().send()).await {
                Ok(answer) => answer,
                Err(error) if meaning(&error) == Meaning::Missing => {
                    return Err(Error::NamespaceMissing { namespace: namespace.to_string(), catalog: self.describe() });
                }
                Err(error) => return Err(self.failure("list tables", error)),
            };
            let tables = answer.table_list.unwrap_or_default();
            names.extend(tables.into_iter().filter(is_iceberg).map(|table| table.name));
            page = answer.next_token.filter(|token| !token.is_empty());
            if page.is_none() {
                return Ok(super::nameable(namespace, names));
            }
        }
    }

    async fn head(&self, table: &TableName, known: Option<&Head>) -> Result<Head> {
        let (_, location) = self.glue_table(table).await?;
        let metadata = pointer::read(&self.storage, table, &location, known).await?;
        Ok(Head::new(table, metadata, location))
    }

    async fn create(&self, new: NewTable) -> Result<Head> {
        let table = new.table.clone();
        let exists = || Error::TableExists { table: table.clone(), catalog: self.describe() };
        match self.glue_table(&table).await {
            Ok(_) | Err(Error::NotIceberg { .. }) => return Err(exists()),
            Err(Error::TableMissing { .. }) => {}
            Err(error) => return Err(error),
        }
        self.create_namespace(table.namespace()).await?;
        let location = new.location.clone();
        let location = location.unwrap_or_else(|| pointer::default_location(&self.options.warehouse, &table));
        let staged = pointer::stage_first(&self.storage, new, location).await?;
        let input = table_input(&table, None, &staged, None)?;
        let request = self.client.create_table().database_name(table.namespace()).table_input(input);
        let created = request.set_catalog_id(self.options.catalog_id.clone()).send().await;
        let Err(error) = created else { return Ok(staged.into_head(&table)) };
        let meaning = meaning(&error);
        if meaning == Meaning::Doubtful {
            // Its own location in the pointer is the proof that it was made after all.
            if let Ok((_, location)) = self.glue_table(&table).await
                && location == staged.location
            {
                return Ok(staged.into_head(&table));
            }
            return Err(self.failure("make the table", error));
        }
        pointer::discard(&self.storage, &staged).await;
        Err(match meaning {
            Meaning::Exists => exists(),
            Meaning::Missing => {
                Error::NamespaceMissing { namespace: table.namespace().to_string(), catalog: self.describe() }
            }
            _ => self.failure("make the table", error),
        })
    }

    async fn swap(
        &self,
        base: &Head,
        requirements: &[TableRequirement],
        updates: &[TableUpdate],
    ) -> Result<Head, Swap> {
        let table = &base.table;
        // One answer gives the version, the pointer it stands for, and what others keep on the table.
        let (current, location) = match self.glue_table(table).await {
            Ok(found) => found,
            Err(error @ Error::Unreachable { .. }) => return Err(Swap::Busy(error)),
            Err(error) => return Err(Swap::Failed(error)),
        };
        if location != base.metadata_location {
            return Err(Swap::Lost);
        }
        let Some(version) = current.version_id.clone() else {
            let answer = "a table without a version, which cannot be changed safely".to_string();
            return Err(Swap::Failed(Error::Protocol { what: self.describe(), answer }));
        };
        let staged = pointer::stage(&self.storage, base, requirements, updates).await?;
        let input = table_input(table, Some(&current), &staged, Some(&base.metadata_location));
        let input = input.map_err(Swap::Failed)?;
        let request = self.client.update_table().database_name(table.namespace()).table_input(input);
        // Glue would keep every version of the table up to a limit, and then refuse to make more.
        let request = request.skip_archive(true).version_id(version);
        let Err(error) = request.set_catalog_id(self.options.catalog_id.clone()).send().await else {
            pointer::prune(&self.storage, &staged).await;
            return Ok(staged.into_head(table));
        };
        let swap = match meaning(&error) {
            Meaning::Conflict | Meaning::Missing => Swap::Lost,
            Meaning::Throttled | Meaning::NotSent if without_credentials(&error).is_none() => {
                Swap::Busy(self.failure("move the table", error))
            }
            Meaning::Doubtful => Swap::Unknown(self.failure("move the table", error)),
            _ => Swap::Failed(self.failure("move the table", error)),
        };
        if !matches!(swap, Swap::Unknown(_)) {
            pointer::discard(&self.storage, &staged).await;
        }
        Err(swap)
    }

    async fn drop_table(&self, table: &TableName) -> Result<()> {
        // Glue would as readily forget a table of another kind.
        self.glue_table(table).await?;
        let mut attempt = 0;
        loop {
            let request = self.client.delete_table().database_name(table.namespace()).name(table.name());
            let Err(error) = request.set_catalog_id(self.options.catalog_id.clone()).send().await else {
                return Ok(());
            };
            match meaning(&error) {
                Meaning::Missing => return Err(self.missing(table)),
                Meaning::Throttled if attempt + 1 < backoff::ATTEMPTS => backoff::pause(attempt).await,
                _ => return Err(self.failure("forget the table", error)),
            }
            attempt += 1;
        }
    }
}

/// Asks until there is an answer. Only for questions that may be asked twice.
async fn ask<T, E, F>(mut call: impl FnMut() -> F) -> Result<T, SdkError<E, HttpResponse>>
where
    F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let mut attempt = 0;
    loop {
        let error = match call().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let may_help = matches!(meaning(&error), Meaning::Throttled | Meaning::NotSent | Meaning::Doubtful);
        if !may_help || without_credentials(&error).is_some() || attempt + 1 == backoff::ATTEMPTS {
            return Err(error);
        }
        tracing::debug!(attempt, error = %told(&error), "glue is asked again");
        backoff::pause(attempt).await;
        attempt += 1;
    }
}

/// What a failed call says about whether something was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Missing,
    Exists,
    /// The version is not the current one.
    Conflict,
    /// Turned away before anything was done.
    Throttled,
    /// It never left this machine.
    NotSent,
    /// It may have been done.
    Doubtful,
    Denied,
    Refused,
}

fn meaning<E>(error: &SdkError<E, HttpResponse>) -> Meaning
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match error {
        SdkError::ConstructionFailure(_) => Meaning::NotSent,
        SdkError::DispatchFailure(failure) if failure.is_user() || never_connected(error) => Meaning::NotSent,
        SdkError::ServiceError(answer) => answered(answer.err().code(), answer.raw().status().as_u16()),
        _ => Meaning::Doubtful,
    }
}

fn answered(code: Option<&str>, status: u16) -> Meaning {
    match code.unwrap_or_default() {
        "EntityNotFoundException" => Meaning::Missing,
        "AlreadyExistsException" => Meaning::Exists,
        "ConcurrentModificationException" | "VersionMismatchException" => Meaning::Conflict,
        "OperationTimeoutException"
        | "InternalServiceException"
        | "InternalFailure"
        | "ServiceUnavailable"
        | "ServiceUnavailableException" => Meaning::Doubtful,
        "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded"
        | "ProvisionedThroughputExceededException"
        | "SlowDown"
        | "ResourceNotReadyException" => Meaning::Throttled,
        "AccessDeniedException"
        | "AccessDenied"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "OptInRequired" => Meaning::Denied,
        _ => match status {
            429 => Meaning::Throttled,
            401 | 403 => Meaning::Denied,
            500.. => Meaning::Doubtful,
            _ => Meaning::Refused,
        },
    }
}

/// Whether a connection was never made, so that nothing can have been sent.
fn never_connected(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let refused = error.downcast_ref::<io::Error>().is_some_and(|error| {
            use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable};
            matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | AddrNotAvailable)
        });
        // The HTTP library's own type for this is not public to us.
        if refused || error.to_string().contains("dns error") {
            return true;
        }
        next = error.source();
    }
    false
}

fn without_credentials<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a CredentialsError> {
    storage::find(error)
}

/// An SDK error in the words of the service, or of whatever is at the bottom of it.
fn told<E>(error: &SdkError<E, HttpResponse>) -> io::Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let text = match error.as_service_error() {
        Some(answer) => match (answer.code(), answer.message(), error.raw_response()) {
            (Some(code), Some(message), _) => format!("{code}: {message}"),
            (Some(code), None, _) => code.to_string(),
            (None, _, Some(response)) => format!("HTTP status {}", response.status().as_u16()),
            (None, _, None) => answer.to_string(),
        },
        None => {
            let mut lines: Vec<String> = vec![error.to_string()];
            let mut next = std::error::Error::source(error);
            while let Some(error) = next {
                lines.push(error.to_string());
                next = error.source();
            }
            lines.dedup();
            lines.join(": ")
        }
    };
    io::Error::other(text)
}

fn incomplete(error: &dyn std::error::Error) -> Error {
    Error::Protocol { what: "Glue".to_string(), answer: error.to_string() }
}

fn parameter<'a>(table: &'a Table, key: &str) -> Option<&'a str> {
    table.parameters()?.get(key).map(String::as_str)
}

fn is_iceberg(table: &Table) -> bool {
    parameter(table, TABLE_TYPE).is_some_and(|kind| kind.eq_ignore_ascii_case("ICEBERG"))
}

/// What is written to Glue: what is there now, with the pointer moved and the columns of the current schema.
fn table_input(
    table: &TableName,
    current: Option<&Table>,
    staged: &Staged,
    previous: Option<&str>,
) -> Result<TableInput> {
    let metadata = &staged.metadata;
    let mut parameters = current.and_then(Table::parameters).cloned().unwrap_or_default();
    parameters.insert(TABLE_TYPE.to_string(), "ICEBERG".to_string());
    parameters.insert(METADATA_LOCATION.to_string(), staged.location.clone());
    if let Some(previous) = previous {
        parameters.insert(PREVIOUS_METADATA_LOCATION.to_string(), previous.to_string());
    }
    let descriptor = current.and_then(Table::storage_descriptor).cloned();
    let mut descriptor = descriptor.unwrap_or_else(|| StorageDescriptor::builder().build());
    descriptor.columns = Some(columns(metadata.current_schema())?);
    descriptor.location = Some(metadata.location().to_string());

    let mut input = TableInput::builder()
        .name(table.name())
        .table_type("EXTERNAL_TABLE")
        .set_parameters(Some(parameters))
        .storage_descriptor(descriptor);
    match current {
        Some(current) => {
            input = input
                .set_description(current.description.clone())
                .set_owner(current.owner.clone())
                .set_last_access_time(current.last_access_time)
                .set_last_analyzed_time(current.last_analyzed_time)
                .retention(current.retention)
                .set_partition_keys(current.partition_keys.clone())
                .set_view_original_text(current.view_original_text.clone())
                .set_view_expanded_text(current.view_expanded_text.clone())
                .set_target_table(current.target_table.clone());
            if let Some(kind) = &current.table_type {
                input = input.table_type(kind);
            }
        }
        None => {
            // Athena wants the list, even an empty one.
            input = input.set_partition_keys(Some(Vec::new()));
            input = input.set_description(metadata.properties().get("comment").cloned());
        }
    }
    input.build().map_err(|error| incomplete(&error))
}

/// A schema as Athena lists it. Engines that read Iceberg ignore this and read the metadata file.
fn columns(schema: &Schema) -> Result<Vec<Column>> {
    let mut seen = HashSet::new();
    let mut columns = Vec::new();
    for field in schema.as_struct().fields() {
        // Glue does not tell upper from lower case, and refuses a table that has a column twice.
        let name = field.name.to_lowercase();
        if !seen.insert(name.clone()) {
            continue;
        }
        let parameters = HashMap::from([
            ("iceberg.field.id".to_string(), field.id.to_string()),
            ("iceberg.field.optional".to_string(), (!field.required).to_string()),
            ("iceberg.field.current".to_string(), "true".to_string()),
        ]);
        let column = Column::builder()
            .name(name)
            .r#type(athena_type(&field.field_type))
            .set_comment(field.doc.as_deref().map(comment))
            .set_parameters(Some(parameters));
        columns.push(column.build().map_err(|error| incomplete(&error))?);
    }
    Ok(columns)
}

/// One line of at most 255 bytes is what Glue takes for a comment.
fn comment(doc: &str) -> String {
    let mut line: String = doc.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    while line.len() > 255 {
        line.pop();
    }
    line
}

fn athena_type(kind: &Type) -> String {
    let name = match kind {
        Type::Primitive(primitive) => match primitive {
            PrimitiveType::Boolean => "boolean",
            PrimitiveType::Int => "int",
            PrimitiveType::Long => "bigint",
            PrimitiveType::Float => "float",
            PrimitiveType::Double => "double",
            PrimitiveType::Decimal { precision, scale } => return format!("decimal({precision},{scale})"),
            PrimitiveType::Date => "date",
            PrimitiveType::Timestamp
            | PrimitiveType::Timestamptz
            | PrimitiveType::TimestampNs
            | PrimitiveType::TimestamptzNs => "timestamp",
            PrimitiveType::Time | PrimitiveType::String | PrimitiveType::Uuid => "string",
            PrimitiveType::Fixed(_) | PrimitiveType::Binary => "binary",
        },
        Type::Struct(fields) => {
            let fields = fields.fields().iter();
            let fields: Vec<String> =
                fields.map(|field| format!("{}:{}", field.name, athena_type(&field.field_type))).collect();
            return format!("struct<{}>", fields.join(","));
        }
        Type::List(list) => return format!("array<{}>", athena_type(&list.element_field.field_type)),
        Type::Map(map) => {
            let (key, value) = (&map.key_field.field_type, &map.value_field.field_type);
            return format!("map<{},{}>", athena_type(key), athena_type(value));
        }
    };
    name.to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use iceberg::spec::{ListType, MapType, NestedField, StructType};
    use serde_json::json;

    use super::*;
    use crate::scripted_server::Server;
    use crate::table::storage::StorageOptions;

    fn primitive(kind: PrimitiveType) -> Type {
        Type::Primitive(kind)
    }

    #[test]
    fn types_are_named_as_athena_names_them() {
        let decimal = primitive(PrimitiveType::Decimal { precision: 12, scale: 2 });
        let pair = Type::Struct(StructType::new(vec![
            NestedField::required(1, "at", primitive(PrimitiveType::Timestamptz)).into(),
            NestedField::optional(2, "amount", decimal.clone()).into(),
        ]));
        let list = Type::List(ListType::new(NestedField::list_element(3, pair.clone(), true).into()));
        let map = Type::Map(MapType::new(
            NestedField::map_key_element(4, primitive(PrimitiveType::String)).into(),
            NestedField::map_value_element(5, list.clone(), true).into(),
        ));
        for (kind, expected) in [
            (primitive(PrimitiveType::Boolean), "boolean"),
            (primitive(PrimitiveType::Int), "int"),
            (primitive(PrimitiveType::Long), "bigint"),
            (primitive(PrimitiveType::Date), "date"),
            (primitive(PrimitiveType::Time), "string"),
            (primitive(PrimitiveType::Timestamp), "timestamp"),
            (primitive(PrimitiveType::Timestamptz), "timestamp"),
            (primitive(PrimitiveType::Uuid), "string"),
            (primitive(PrimitiveType::Fixed(16)), "binary"),
            (decimal, "decimal(12,2)"),
            (pair, "struct<at:timestamp,amount:decimal(12,2)>"),
            (list, "array<struct<at:timestamp,amount:decimal(12,2)>>"),
            (map, "map<string,array<struct<at:timestamp,amount:decimal(12,2)>>>"),
        ] {
            assert_eq!(athena_type(&kind), expected);
        }
    }

    #[test]
    fn columns_are_the_current_ones_once_each() {
        let long = "x\ny ".repeat(100);
        let schema = Schema::builder().with_fields([
            NestedField::required(1, "id", primitive(PrimitiveType::Long)).with_doc(&long).into(),
            NestedField::optional(2, "Note", primitive(PrimitiveType::String)).into(),
            NestedField::optional(3, "note", primitive(PrimitiveType::Int)).into(),
        ]);
        let columns = columns(&schema.build().unwrap()).unwrap();
        let names: Vec<_> = columns.iter().map(|column| (column.name(), column.r#type().unwrap())).collect();
        assert_eq!(names, [("id", "bigint"), ("note", "string")]);
        let parameters = columns[1].parameters().unwrap();
        assert_eq!(parameters["iceberg.field.id"], "2");
        assert_eq!(parameters["iceberg.field.optional"], "true");
        assert_eq!(parameters["iceberg.field.current"], "true");
        let comment = columns[0].comment().unwrap();
        assert!(comment.len() == 255 && !comment.contains('\n'), "{comment}");
    }

    #[test]
    fn what_others_keep_on_a_table_stays() {
        let metadata = pointer::tests::metadata("s3://lake/shop/orders");
        let staged = pointer::tests::staged(metadata);
        let table = TableName::new("shop", "orders").unwrap();
        let theirs = StorageDescriptor::builder()
            .columns(Column::builder().name("old").build().unwrap())
            .location("s3://old")
            .parameters("sd", "theirs")
            .build();
        let current = Table::builder()
            .name("orders")
            .description("what was sold")
            .owner("finance")
            .retention(7)
            .table_type("EXTERNAL_TABLE")
            .parameters(TABLE_TYPE, "iceberg")
            .parameters(METADATA_LOCATION, "before")
            .parameters("classification", "pii")
            .storage_descriptor(theirs)
            .build()
            .unwrap();
        let input = table_input(&table, Some(&current), &staged, Some("before")).unwrap();
        assert_eq!(
            (input.description(), input.owner(), input.retention()),
            (Some("what was sold"), Some("finance"), 7)
        );
        let parameters = input.parameters().unwrap();
        assert_eq!(parameters["classification"], "pii");
        assert_eq!(parameters[METADATA_LOCATION], staged.location);
        assert_eq!(parameters[PREVIOUS_METADATA_LOCATION], "before");
        let descriptor = input.storage_descriptor().unwrap();
        assert_eq!(descriptor.location(), Some(staged.metadata.location()));
        assert_eq!(descriptor.parameters().unwrap()["sd"], "theirs");
        assert_eq!(descriptor.columns().iter().map(Column::name).collect::<Vec<_>>(), ["id"]);
    }

    #[tokio::test]
    async fn a_swap_is_sent_once_and_its_answer_says_what_was_applied() {
        let folder = tempfile::tempdir().unwrap();
        let location = format!("file://{}/orders", folder.path().display());
        let next = Arc::new(Mutex::new(None));
        let answer = next.clone();
        let table = json!({ "Table": {
            "Name": "orders",
            "VersionId": "7",
            "Parameters": { TABLE_TYPE: "ICEBERG", METADATA_LOCATION: "there" },
        }});
        let server = Server::start(move |seen| {
            if seen.headers.contains("x-amz-target: awsglue.gettable") {
                return Some((200, table.to_string()));
            }
            answer.lock().unwrap().clone()
        })
        .await;
        let options = GlueOptions {
            endpoint: Some(server.uri.clone()),
            aws: AwsOptions {
                region: Some("eu-west-1".to_string()),
                access_key_id: Some("id".to_string()),
                secret_access_key: Some("secret".to_string()),
                ..AwsOptions::default()
            },
            ..GlueOptions::default()
        };
        let storage = Storage::new(StorageOptions::default()).unwrap();
        let catalog = GlueCatalog::open(options, storage).await.unwrap();
        let name = TableName::new("shop", "orders").unwrap();
        let base = Head::new(&name, Arc::new(pointer::tests::metadata(&location)), "there".to_string());
        let files = || std::fs::read_dir(folder.path().join("orders/metadata")).unwrap().count();
        let refused = |code: &str| Some((400, json!({ "__type": code, "Message": "so it is" }).to_string()));
        for (answer, expected, staged) in [
            (refused("ConcurrentModificationException"), "lost", 0),
            (refused("EntityNotFoundException"), "lost", 0),
            (refused("ThrottlingException"), "busy", 0),
            (refused("AccessDeniedException"), "failed", 0),
            (refused("InvalidInputException"), "failed", 0),
            (Some((500, json!({ "__type": "InternalServiceException" }).to_string())), "unknown", 1),
            (Some((503, String::new())), "unknown", 2),
            (None, "unknown", 3),
            (Some((200, "{}".to_string())), "won", 4),
        ] {
            *next.lock().unwrap() = answer.clone();
            let before = server.lines().len();
            let found = match catalog.swap(&base, &[], &[]).await {
                Ok(_) => "won",
                Err(Swap::Lost) => "lost",
                Err(Swap::Busy(_)) => "busy",
                Err(Swap::Failed(_)) => "failed",
                Err(Swap::Unknown(_)) => "unknown",
            };
            assert_eq!((found, files()), (expected, staged), "{answer:?}");
            assert_eq!(server.lines().len(), before + 2, "one question and one change: {answer:?}");
        }
        let sent: serde_json::Value = serde_json::from_str(&server.last().body).unwrap();
        assert_eq!((&sent["VersionId"], &sent["SkipArchive"]), (&json!("7"), &json!(true)));
        *next.lock().unwrap() = refused("AccessDeniedException");
        let error = catalog.namespaces().await.unwrap_err();
        insta::assert_snapshot!(server.hide(crate::error::Error::from(error).render()), @"
        error: Glue catalog at `http://server` refused access
          caused by: AccessDeniedException: so it is
          hint: check the credentials and what they are allowed to do
        ");

        let moved = Head { metadata_location: "elsewhere".to_string(), ..base };
        let before = server.lines().len();
        assert!(matches!(catalog.swap(&moved, &[], &[]).await, Err(Swap::Lost)));
        assert_eq!(server.lines().len(), before + 1, "a race that is already lost costs one question");
    }

    #[tokio::test]
    async fn a_throttled_question_is_asked_again() {
        let times = Mutex::new(0);
        let server = Server::start(move |_| {
            *times.lock().unwrap() += 1;
            match *times.lock().unwrap() {
                1 => Some((400, json!({ "__type": "ThrottlingException" }).to_string())),
                2 => None,
                3 => Some((200, json!({ "DatabaseList": [{ "Name": "b" }], "NextToken": "more" }).to_string())),
                _ => Some((200, json!({ "DatabaseList": [{ "Name": "a" }] }).to_string())),
            }
        })
        .await;
        let options = GlueOptions {
            endpoint: Some(server.uri.clone()),
            catalog_id: Some("123456789012".to_string()),
            aws: AwsOptions {
                access_key_id: Some("id".to_string()),
                secret_access_key: Some("secret".to_string()),
                ..AwsOptions::default()
            },
            ..GlueOptions::default()
        };
        let storage = Storage::new(StorageOptions::default()).unwrap();
        let catalog = GlueCatalog::open(options, storage).await.unwrap();
        assert_eq!(catalog.namespaces().await.unwrap(), ["a", "b"]);
        let sent: serde_json::Value = serde_json::from_str(&server.last().body).unwrap();
        assert_eq!(sent, json!({ "CatalogId": "123456789012", "NextToken": "more" }));
        assert_eq!(server.lines().len(), 4);
    }

    #[test]
    fn only_a_certain_refusal_counts_as_not_applied() {
        for (code, status, expected) in [
            (Some("ConcurrentModificationException"), 400, Meaning::Conflict),
            (Some("EntityNotFoundException"), 400, Meaning::Missing),
            (Some("AlreadyExistsException"), 400, Meaning::Exists),
            (Some("ThrottlingException"), 400, Meaning::Throttled),
            (None, 429, Meaning::Throttled),
            (Some("OperationTimeoutException"), 400, Meaning::Doubtful),
            (Some("InternalServiceException"), 500, Meaning::Doubtful),
            (None, 502, Meaning::Doubtful),
            (None, 503, Meaning::Doubtful),
            (Some("AccessDeniedException"), 400, Meaning::Denied),
            (None, 403, Meaning::Denied),
            (Some("InvalidInputException"), 400, Meaning::Refused),
            (Some("ResourceNumberLimitExceededException"), 400, Meaning::Refused),
        ] {
            assert_eq!(answered(code, status), expected, "{code:?} {status}");
        }
        assert!(never_connected(&io::Error::from(io::ErrorKind::ConnectionRefused)));
        assert!(!never_connected(&io::Error::from(io::ErrorKind::ConnectionReset)));
    }
}
