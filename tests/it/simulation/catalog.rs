//! A catalog in memory, and the bad line that leads to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use iceberg::spec::{FormatVersion, TableMetadata, TableMetadataBuilder};
use iceberg::{TableCreation, TableRequirement, TableUpdate};
use icestream::ids::TableName;
use icestream::table::Error;
use icestream::table::catalog::{Catalog, Head, NewTable, Swap};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::Gate;

/// The tables' heads. What it does is done at once.
#[derive(Debug)]
pub struct Memory {
    warehouse: String,
    heads: Mutex<BTreeMap<TableName, Head>>,
    states: AtomicU64,
    /// Swaps that were sent, and did not arrive yet.
    under_way: Mutex<Vec<Request>>,
}

#[derive(Debug)]
struct Request {
    base: Head,
    requirements: Vec<TableRequirement>,
    updates: Vec<TableUpdate>,
}

impl Memory {
    pub fn new(warehouse: String) -> Self {
        let (heads, under_way) = Default::default();
        Memory { warehouse, heads, states: AtomicU64::new(0), under_way }
    }

    pub fn property(&self, table: &TableName, key: &str) -> Option<String> {
        self.heads.lock().unwrap().get(table)?.metadata.properties().get(key).cloned()
    }

    fn head_of(&self, table: &TableName, metadata: TableMetadata) -> Head {
        let state = self.states.fetch_add(1, Ordering::SeqCst);
        Head {
            table: table.clone(),
            metadata: Arc::new(metadata),
            metadata_location: format!("{}/metadata/{state:05}.metadata.json", self.warehouse),
            retention: Arc::default(),
        }
    }

    fn head(&self, table: &TableName) -> Result<Head, Error> {
        let head = self.heads.lock().unwrap().get(table).cloned();
        head.ok_or_else(|| Error::TableMissing { table: table.clone(), catalog: "memory".to_string() })
    }

    fn create(&self, new: NewTable) -> Result<Head, Error> {
        let mut heads = self.heads.lock().unwrap();
        let table = new.table;
        if heads.contains_key(&table) {
            return Err(Error::TableExists { table, catalog: "memory".to_string() });
        }
        let creation = TableCreation::builder()
            .name(table.name().to_string())
            .location(format!("{}/{}", self.warehouse, table.name()))
            .schema(new.schema)
            .partition_spec(new.partition_spec)
            .sort_order(new.sort_order)
            .properties(new.properties)
            .format_version(FormatVersion::V2)
            .build();
        let metadata = TableMetadataBuilder::from_table_creation(creation).unwrap().build().unwrap().metadata;
        let head = self.head_of(&table, metadata);
        heads.insert(table, head.clone());
        Ok(head)
    }

    fn swap(&self, request: &Request) -> Result<Head, Swap> {
        let Request { base, requirements, updates } = request;
        let mut heads = self.heads.lock().unwrap();
        let current = &heads[&base.table];
        let holds = |requirement: &TableRequirement| requirement.check(Some(&current.metadata)).is_ok();
        if current.metadata_location != base.metadata_location || !requirements.iter().all(holds) {
            return Err(Swap::Lost);
        }
        let builder = TableMetadata::clone(&base.metadata).into_builder(Some(base.metadata_location.clone()));
        let builder = updates.iter().fold(builder, |builder, update| update.clone().apply(builder).unwrap());
        let head = self.head_of(&base.table, builder.build().unwrap().metadata);
        heads.insert(base.table.clone(), head.clone());
        Ok(head)
    }

    /// What was under way arrives.
    pub fn deliver(&self) {
        let arriving = std::mem::take(&mut *self.under_way.lock().unwrap());
        for request in arriving {
            // Nobody waits for the answer any more.
            let _ = self.swap(&request);
        }
    }
}

/// One owner's line to the catalog, on which requests and answers get lost or come late.
#[derive(Debug)]
pub struct Line {
    pub memory: Arc<Memory>,
    pub gate: Gate,
    /// Set once nothing is to go wrong any more.
    pub is_calm: Arc<AtomicBool>,
    dice: Mutex<SmallRng>,
    /// The tables whose last swap was not answered. Looking up what became of it takes seconds when that fails too.
    in_doubt: Mutex<BTreeSet<TableName>>,
}

impl Line {
    pub fn new(memory: Arc<Memory>, gate: Gate, is_calm: Arc<AtomicBool>, seed: u64) -> Self {
        let dice = Mutex::new(SmallRng::seed_from_u64(seed));
        Line { memory, gate, is_calm, dice, in_doubt: Mutex::default() }
    }

    fn roll(&self) -> f64 {
        let roll = self.dice.lock().unwrap().random_range(0.0..1.0);
        if self.is_calm.load(Ordering::SeqCst) { 1.0 } else { roll }
    }

    fn unreachable() -> Error {
        let source = Arc::new(std::io::Error::other("the connection was reset"));
        Error::Unreachable { what: "the catalog".to_string(), source }
    }
}

#[async_trait]
impl Catalog for Line {
    fn describe(&self) -> String {
        "the catalog".to_string()
    }

    async fn namespaces(&self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    async fn create_namespace(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn tables(&self, _: &str) -> Result<Vec<TableName>, Error> {
        Ok(self.memory.heads.lock().unwrap().keys().cloned().collect())
    }

    async fn head(&self, table: &TableName, _: Option<&Head>) -> Result<Head, Error> {
        self.gate.pass().await;
        if self.roll() < 0.3 {
            self.memory.deliver();
        }
        let was_in_doubt = self.in_doubt.lock().unwrap().remove(table);
        if !was_in_doubt && self.roll() < 0.02 {
            return Err(Line::unreachable());
        }
        self.memory.head(table)
    }

    async fn create(&self, new: NewTable) -> Result<Head, Error> {
        self.gate.pass().await;
        let roll = self.roll();
        if roll < 0.03 {
            return Err(Line::unreachable());
        }
        let made = self.memory.create(new);
        self.gate.pass().await;
        if roll < 0.06 { Err(Line::unreachable()) } else { made }
    }

    async fn swap(
        &self,
        base: &Head,
        requirements: &[TableRequirement],
        updates: &[TableUpdate],
    ) -> Result<Head, Swap> {
        self.gate.pass().await;
        if self.roll() < 0.3 {
            self.memory.deliver();
        }
        let request = Request { base: base.clone(), requirements: requirements.to_vec(), updates: updates.to_vec() };
        let roll = self.roll();
        let doubt = || {
            self.in_doubt.lock().unwrap().insert(base.table.clone());
            Err(Swap::Unknown(Line::unreachable()))
        };
        match roll {
            0.0..0.04 => return doubt(),
            0.04..0.08 => {
                self.memory.under_way.lock().unwrap().push(request);
                return doubt();
            }
            0.08..0.1 => return Err(Swap::Busy(Line::unreachable())),
            0.1..0.12 => return Err(Swap::Failed(Line::unreachable())),
            _ => {}
        }
        let swapped = self.memory.swap(&request);
        // An owner that dies here has committed and does not know.
        self.gate.pass().await;
        match swapped {
            Ok(_) if roll < 0.2 => doubt(),
            other => other,
        }
    }

    async fn drop_table(&self, table: &TableName) -> Result<(), Error> {
        self.memory.heads.lock().unwrap().remove(table);
        Ok(())
    }
}
