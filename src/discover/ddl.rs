//! `CREATE TABLE` statements: names, types, keys and comments, out of schema files and dumps.
//!
//! A dump holds much that no parser of one dialect reads to its end: storage clauses, psql's commands, rows of data. So
//! the file is taken apart into statements first, and of a table only the column list is read, entry by entry. What
//! cannot be read is left out, and named with its line.

use datafusion::sql::sqlparser::dialect::{
    Dialect as TokenDialect, MsSqlDialect, MySqlDialect, OracleDialect, PostgreSqlDialect,
};
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, Word};

/// Which database a schema file is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dialect {
    PostgreSql,
    MySql,
    SqlServer,
    Oracle,
}

/// What one file declares.
#[derive(Debug, Default)]
pub(super) struct Ddl {
    pub(super) tables: Vec<DdlTable>,
    pub(super) skipped: Vec<Skipped>,
    /// Names given to other types: domains, and what they stand for.
    aliases: Vec<(String, SqlType)>,
}

/// A `CREATE TABLE` that was not understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Skipped {
    pub(super) line: usize,
    pub(super) reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DdlTable {
    /// Schema or database, where the statement names it.
    pub(super) schema: Option<String>,
    pub(super) name: String,
    pub(super) columns: Vec<DdlColumn>,
    pub(super) key: Vec<String>,
    pub(super) line: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DdlColumn {
    pub(super) name: String,
    pub(super) sql_type: SqlType,
    pub(super) doc: Option<String>,
}

/// A type as it was declared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SqlType {
    /// In lower case, without its schema, one blank between words: `character varying`.
    pub(super) name: String,
    /// What stands in parentheses behind the name.
    pub(super) arguments: Vec<String>,
    pub(super) is_unsigned: bool,
    /// Declared `WITH TIME ZONE` or `WITH LOCAL TIME ZONE`.
    pub(super) has_zone: bool,
    pub(super) is_array: bool,
}

impl Dialect {
    const ALL: [Dialect; 4] = [Dialect::PostgreSql, Dialect::MySql, Dialect::SqlServer, Dialect::Oracle];

    /// The dialect of the database that a Debezium connector reads.
    pub(super) fn of_connector(connector: &str) -> Option<Dialect> {
        match connector {
            "postgresql" => Some(Dialect::PostgreSql),
            "mysql" | "mariadb" => Some(Dialect::MySql),
            "sqlserver" => Some(Dialect::SqlServer),
            "oracle" => Some(Dialect::Oracle),
            _ => None,
        }
    }

    fn tokens(self) -> Box<dyn TokenDialect> {
        match self {
            Dialect::PostgreSql => Box::new(PostgreSqlDialect {}),
            Dialect::MySql => Box::new(MySqlDialect {}),
            Dialect::SqlServer => Box::new(MsSqlDialect {}),
            Dialect::Oracle => Box::new(OracleDialect {}),
        }
    }
}

impl SqlType {
    /// An argument that is a whole number.
    pub(super) fn number(&self, index: usize) -> Option<i64> {
        self.arguments.get(index)?.parse().ok()
    }
}

impl std::fmt::Display for SqlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        // Labels of enums can be many and long.
        if !self.arguments.is_empty() && !matches!(self.name.as_str(), "enum" | "set") {
            write!(f, "({})", self.arguments.join(","))?;
        }
        f.write_str(if self.is_unsigned { " unsigned" } else { "" })?;
        f.write_str(if self.has_zone && self.name != "timestamptz" { " with time zone" } else { "" })?;
        f.write_str(if self.is_array { "[]" } else { "" })
    }
}

/// What may stand between `CREATE` and `TABLE`.
const BEFORE_TABLE: [&str; 8] = ["OR", "REPLACE", "GLOBAL", "LOCAL", "PRIVATE", "TEMPORARY", "TEMP", "UNLOGGED"];

/// Reads a schema file. Where the dialect is not known, it is the one of which most columns can be made.
pub(super) fn read(text: &str, dialect: Option<Dialect>) -> Ddl {
    let read = Dialect::ALL
        .iter()
        .filter(|known| dialect.is_none_or(|wanted| wanted == **known))
        .map(|dialect| read_as(text, *dialect));
    let columns = |ddl: &Ddl| ddl.tables.iter().map(|table| table.columns.len()).sum::<usize>();
    read.reduce(|best, next| if columns(&next) > columns(&best) { next } else { best }).unwrap_or_default()
}

fn read_as(text: &str, dialect: Dialect) -> Ddl {
    let mut ddl = Ddl::default();
    for statement in statements(text, dialect) {
        let head: Vec<String> = statement.text.split_whitespace().take(8).map(str::to_ascii_uppercase).collect();
        let says = |word: &str| head.iter().any(|found| found == word);
        let is_between = |word: &&String| BEFORE_TABLE.contains(&word.as_str());
        let created = head.iter().skip(1).find(|word| !is_between(word)).map(String::as_str);
        let is_table = head[0] == "CREATE" && created == Some("TABLE");
        let is_wanted = match head[0].as_str() {
            "CREATE" => matches!(created, Some("TABLE" | "DOMAIN" | "TYPE")),
            "ALTER" => says("TABLE"),
            "COMMENT" => says("COLUMN"),
            _ => false,
        };
        if !is_wanted {
            continue;
        }
        let tokens = dialect.tokens();
        let tokenized = Tokenizer::new(tokens.as_ref(), &statement.text).tokenize();
        let understood = match tokenized {
            Err(error) => Err(error.message),
            Ok(found) => {
                let found: Vec<Token> =
                    found.into_iter().filter(|token| !matches!(token, Token::Whitespace(_))).collect();
                ddl.take(Cursor { tokens: &found, at: 0 }, statement.line, dialect)
            }
        };
        if let (Err(reason), true) = (understood, is_table) {
            ddl.skipped.push(Skipped { line: statement.line, reason });
        }
    }
    ddl.replace_aliases();
    ddl
}

impl Ddl {
    fn take(&mut self, mut cursor: Cursor<'_>, line: usize, dialect: Dialect) -> Result<(), String> {
        match cursor.next_word().as_deref() {
            Some("CREATE") => {
                while let Some(word) = cursor.next_word() {
                    match word.as_str() {
                        "TABLE" => return self.create_table(cursor, line, dialect),
                        "DOMAIN" | "TYPE" => return self.create_alias(cursor),
                        _ => {}
                    }
                }
                Err("it names no table".to_string())
            }
            Some("ALTER") => self.alter_table(cursor),
            _ => self.comment(cursor),
        }
    }

    fn create_table(&mut self, mut cursor: Cursor<'_>, line: usize, dialect: Dialect) -> Result<(), String> {
        cursor.skip_words(&["IF", "NOT", "EXISTS"]);
        let (schema, name) = cursor.name().ok_or("it names no table")?;
        if cursor.rest_says(&["PARTITION", "OF"]) {
            // Its rows are those of the table it is a part of.
            return Ok(());
        }
        let Some(body) = cursor.parenthesised() else {
            return Err(format!("`{name}` has no list of columns"));
        };
        let (mut columns, mut key): (Vec<DdlColumn>, Vec<String>) = (Vec::new(), Vec::new());
        for entry in split(body) {
            let mut entry = Cursor { tokens: entry, at: 0 };
            if is_constraint(&entry, dialect) {
                key.extend(entry.primary_key().unwrap_or_default());
                continue;
            }
            let Some(name) = entry.identifier() else {
                return Err(format!("column {} of `{name}` has no name", columns.len() + 1));
            };
            let sql_type = match entry.peek_word().as_deref() {
                // SQL Server names no type for what it computes.
                Some("AS") => SqlType { name: "computed".to_string(), ..SqlType::default() },
                _ => entry.sql_type(),
            };
            if entry.rest_says(&["PRIMARY", "KEY"]) {
                key.push(name.clone());
            }
            columns.push(DdlColumn { name, sql_type, doc: entry.comment() });
        }
        self.tables.push(DdlTable { schema, name, columns, key, line });
        Ok(())
    }

    /// `CREATE DOMAIN price AS numeric(12,3)`, and SQL Server's `CREATE TYPE price FROM decimal(12,3)`.
    fn create_alias(&mut self, mut cursor: Cursor<'_>) -> Result<(), String> {
        let (_, name) = cursor.name().ok_or("it names no type")?;
        let names_enum = cursor.rest_says(&["AS", "ENUM"]);
        if !names_enum && !cursor.rest_says(&["AS", "RANGE"]) && !cursor.lists_fields() {
            cursor.skip_words(&["AS", "FROM"]);
            self.aliases.push((name.to_lowercase(), cursor.sql_type()));
        }
        Ok(())
    }

    /// `ALTER TABLE ONLY public.orders ADD CONSTRAINT orders_pkey PRIMARY KEY (id)`, as pg_dump has it.
    fn alter_table(&mut self, mut cursor: Cursor<'_>) -> Result<(), String> {
        cursor.skip_words(&["TABLE", "ONLY", "IF", "EXISTS"]);
        let (schema, name) = cursor.name().ok_or("it names no table")?;
        if let Some(key) = cursor.primary_key()
            && let Some(table) = self.table_mut(schema.as_deref(), &name)
        {
            table.key = key;
        }
        Ok(())
    }

    /// `COMMENT ON COLUMN public.orders.total IS 'with tax'`.
    fn comment(&mut self, mut cursor: Cursor<'_>) -> Result<(), String> {
        cursor.skip_words(&["ON", "COLUMN"]);
        let mut parts = cursor.dotted();
        let column = parts.pop().ok_or("it names no column")?;
        let name = parts.pop().ok_or("it names no table")?;
        let doc = cursor.rest().iter().find_map(text);
        if let Some(table) = self.table_mut(parts.pop().as_deref(), &name) {
            let mut columns = table.columns.iter_mut();
            if let Some(found) = columns.find(|known| known.name.eq_ignore_ascii_case(&column)) {
                found.doc = doc;
            }
        }
        Ok(())
    }

    fn table_mut(&mut self, schema: Option<&str>, name: &str) -> Option<&mut DdlTable> {
        let is_named = |table: &&mut DdlTable| table.name.eq_ignore_ascii_case(name) && table.may_be_in(schema);
        self.tables.iter_mut().find(is_named)
    }

    fn replace_aliases(&mut self) {
        for column in self.tables.iter_mut().flat_map(|table| &mut table.columns) {
            // A domain may be made of a domain, and not of itself.
            for _ in 0..self.aliases.len() {
                let Some((_, meant)) = self.aliases.iter().find(|(name, _)| *name == column.sql_type.name) else {
                    break;
                };
                let is_array = column.sql_type.is_array || meant.is_array;
                column.sql_type = SqlType { is_array, ..meant.clone() };
            }
        }
    }
}

impl DdlTable {
    /// Whether the table may be the one of this schema; a statement need not say where its table is.
    pub(super) fn may_be_in(&self, schema: Option<&str>) -> bool {
        match (&self.schema, schema) {
            (Some(own), Some(other)) => own.eq_ignore_ascii_case(other),
            _ => true,
        }
    }
}

/// Whether an entry of a column list is something else than a column.
fn is_constraint(entry: &Cursor<'_>, dialect: Dialect) -> bool {
    let Some(Token::Word(Word { value, quote_style: None, .. })) = entry.tokens.first() else { return false };
    match value.to_ascii_uppercase().as_str() {
        "CONSTRAINT" | "PRIMARY" | "UNIQUE" | "FOREIGN" | "CHECK" | "EXCLUDE" | "LIKE" | "SUPPLEMENTAL" => true,
        "FULLTEXT" | "SPATIAL" | "KEY" | "INDEX" => matches!(dialect, Dialect::MySql | Dialect::SqlServer),
        "PERIOD" => entry.rest_says(&["PERIOD", "FOR"]),
        _ => false,
    }
}

/// The entries between commas, without looking into parentheses.
fn split(body: &[Token]) -> impl Iterator<Item = &[Token]> {
    let mut depth = 0;
    body.split(move |token| {
        match token {
            Token::LParen => depth += 1,
            Token::RParen => depth -= 1,
            _ => {}
        }
        depth == 0 && *token == Token::Comma
    })
    .filter(|entry| !entry.is_empty())
}

fn text(token: &Token) -> Option<String> {
    match token {
        Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) | Token::NationalStringLiteral(text) => {
            Some(text.clone())
        }
        _ => None,
    }
}

/// A walk over the tokens of a statement.
struct Cursor<'a> {
    tokens: &'a [Token],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a [Token] {
        &self.tokens[self.at.min(self.tokens.len())..]
    }

    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at)
    }

    /// The next token in upper case when it is a word without quotes.
    fn peek_word(&self) -> Option<String> {
        match self.peek()? {
            Token::Word(Word { value, quote_style: None, .. }) => Some(value.to_ascii_uppercase()),
            _ => None,
        }
    }

    fn next_word(&mut self) -> Option<String> {
        let word = self.peek_word()?;
        self.at += 1;
        Some(word)
    }

    fn skip_words(&mut self, words: &[&str]) {
        while self.peek_word().is_some_and(|word| words.contains(&word.as_str())) {
            self.at += 1;
        }
    }

    fn takes(&mut self, token: &Token) -> bool {
        let is_next = self.peek() == Some(token);
        self.at += usize::from(is_next);
        is_next
    }

    fn identifier(&mut self) -> Option<String> {
        match self.peek()? {
            Token::Word(word) => {
                self.at += 1;
                Some(word.value.clone())
            }
            // MySQL takes double quotes for text unless it is told otherwise.
            Token::DoubleQuotedString(name) => {
                self.at += 1;
                Some(name.clone())
            }
            _ => None,
        }
    }

    fn dotted(&mut self) -> Vec<String> {
        let mut parts = Vec::new();
        while let Some(part) = self.identifier() {
            parts.push(part);
            if !self.takes(&Token::Period) {
                break;
            }
        }
        parts
    }

    /// The schema, if there is one, and the name.
    fn name(&mut self) -> Option<(Option<String>, String)> {
        let mut parts = self.dotted();
        let name = parts.pop()?;
        Some((parts.pop(), name))
    }

    /// What stands between the parenthesis that comes next and its other half.
    fn parenthesised(&mut self) -> Option<&'a [Token]> {
        if self.peek() != Some(&Token::LParen) {
            return None;
        }
        let start = self.at + 1;
        let mut depth = 0;
        for (index, token) in self.tokens.iter().enumerate().skip(self.at) {
            match token {
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                self.at = index + 1;
                return Some(&self.tokens[start..index]);
            }
        }
        None
    }

    /// Whether these words follow one another anywhere from here on, outside of parentheses.
    fn rest_says(&self, words: &[&str]) -> bool {
        self.find(words).is_some()
    }

    /// The place behind these words.
    fn find(&self, words: &[&str]) -> Option<usize> {
        let is_word = |token: &Token, word: &str| matches!(token, Token::Word(found) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word));
        let (rest, mut depth) = (self.rest(), 0);
        for (index, token) in rest.iter().enumerate() {
            match token {
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                _ => {}
            }
            let is_here =
                || rest.len() - index >= words.len() && rest[index..].iter().zip(words).all(|(t, w)| is_word(t, w));
            if depth == 0 && is_here() {
                return Some(self.at + index + words.len());
            }
        }
        None
    }

    fn primary_key(&mut self) -> Option<Vec<String>> {
        self.at = self.find(&["PRIMARY", "KEY"])?;
        while self.peek().is_some_and(|token| *token != Token::LParen) {
            self.at += 1;
        }
        let names = self.parenthesised()?;
        Some(split(names).filter_map(|entry| Cursor { tokens: entry, at: 0 }.identifier()).collect())
    }

    /// MySQL's `COMMENT 'text'` behind a column.
    fn comment(&self) -> Option<String> {
        self.tokens.get(self.find(&["COMMENT"])?).and_then(text)
    }

    /// Whether a `CREATE TYPE` lists fields or gives none at all, and so is no other name of a type.
    fn lists_fields(&self) -> bool {
        let names_none = matches!(self.peek(), None | Some(Token::LParen));
        names_none || self.peek_word().as_deref() == Some("AS") && self.rest().get(1) == Some(&Token::LParen)
    }

    /// The type that starts here. One that is not understood has the name that was read so far.
    fn sql_type(&mut self) -> SqlType {
        let mut sql_type = SqlType::default();
        let Some(name) = self.dotted().pop() else { return sql_type };
        sql_type.name = name.to_lowercase();
        while let Some(word) = self.peek_word().map(|word| word.to_lowercase()) {
            let goes_on = match sql_type.name.as_str() {
                "double" => word == "precision",
                "bit" | "char" | "character" | "national character" | "national char" | "nchar" => word == "varying",
                "national" => matches!(word.as_str(), "character" | "char" | "varchar"),
                "long" => matches!(word.as_str(), "raw" | "varchar" | "varbinary"),
                _ => false,
            };
            if !goes_on {
                break;
            }
            sql_type.name = format!("{} {word}", sql_type.name);
            self.at += 1;
        }
        if sql_type.name == "interval" {
            self.skip_words(&["YEAR", "MONTH", "DAY", "HOUR", "MINUTE", "SECOND", "TO"]);
        }
        if let Some(arguments) = self.parenthesised() {
            let one = |entry: &[Token]| match entry {
                [token] => text(token).unwrap_or_else(|| token.to_string()),
                // Oracle's `VARCHAR2(20 CHAR)`, and a scale below zero.
                [Token::Minus, number] => format!("-{number}"),
                [first, ..] => first.to_string(),
                [] => String::new(),
            };
            sql_type.arguments = split(arguments).map(one).collect();
        }
        while let Some(word) = self.peek_word() {
            match word.as_str() {
                "UNSIGNED" => sql_type.is_unsigned = true,
                "SIGNED" | "ZEROFILL" => {}
                "ARRAY" => sql_type.is_array = true,
                "WITH" | "WITHOUT" if self.find(&["TIME", "ZONE"]).is_some_and(|end| end <= self.at + 4) => {
                    sql_type.has_zone = word == "WITH";
                    self.at = self.find(&["TIME", "ZONE"]).unwrap_or(self.at + 1);
                    continue;
                }
                _ => break,
            }
            self.at += 1;
        }
        while self.takes(&Token::LBracket) {
            sql_type.is_array = true;
            while self.peek().is_some() && !self.takes(&Token::RBracket) {
                self.at += 1;
            }
        }
        sql_type
    }
}

/// A statement with its comments blanked out, and the line it starts at, counted from 1.
#[derive(Debug, PartialEq, Eq)]
struct Statement {
    line: usize,
    text: String,
}

/// Takes a file apart into statements, past what no statement is: comments, psql's and SQL*Plus's commands, `GO`,
/// `DELIMITER`, and the rows behind `COPY … FROM stdin`.
fn statements(text: &str, dialect: Dialect) -> Vec<Statement> {
    let mut splitter = Splitter {
        dialect,
        found: Vec::new(),
        current: String::new(),
        line: 1,
        start: 1,
        depth: 0,
        delimiter: ";".into(),
    };
    splitter.run(text);
    splitter.found
}

struct Splitter {
    dialect: Dialect,
    /// How many parentheses are open.
    depth: usize,
    found: Vec<Statement>,
    current: String,
    line: usize,
    start: usize,
    delimiter: String,
}

impl Splitter {
    fn run(&mut self, text: &str) {
        let mut rest = text;
        let mut is_line_start = true;
        while let Some(c) = rest.chars().next() {
            if std::mem::take(&mut is_line_start)
                && let Some(length) = self.whole_line(rest)
            {
                self.pass(&rest[..length]);
                rest = &rest[length..];
                is_line_start = true;
                continue;
            }
            if rest.starts_with(self.delimiter.as_str()) {
                rest = &rest[self.delimiter.len()..];
                if self.end_statement() {
                    let data = rows_of_copy(rest);
                    self.pass(&rest[..data]);
                    rest = &rest[data..];
                }
                continue;
            }
            match c {
                '(' => self.depth += 1,
                ')' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            let (length, is_kept) = self.piece(rest);
            let piece = &rest[..length];
            if is_kept {
                self.keep(piece);
            } else {
                self.keep(" ");
                self.pass(piece);
            }
            is_line_start = c == '\n';
            rest = &rest[length..];
        }
        self.end_statement();
    }

    /// The length of a line that is a command and not part of a statement.
    fn whole_line(&mut self, rest: &str) -> Option<usize> {
        let length = rest.find('\n').map_or(rest.len(), |end| end + 1);
        let line = rest[..length].trim();
        let first = line.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        let between = self.current.trim().is_empty();
        let is_command = match self.dialect {
            Dialect::PostgreSql => between && line.starts_with('\\'),
            Dialect::SqlServer => first == "GO",
            Dialect::Oracle => line == "/" || between && matches!(first.as_str(), "REM" | "PROMPT" | "SET" | "SPOOL"),
            Dialect::MySql => between && first == "DELIMITER",
        };
        if !is_command {
            if self.dialect == Dialect::SqlServer && self.depth == 0 && self.starts_table(line) {
                self.end_statement();
            }
            return None;
        }
        if first == "DELIMITER" {
            self.delimiter = line.split_whitespace().nth(1).unwrap_or(";").to_string();
        }
        self.end_statement();
        Some(length)
    }

    /// Whether a statement starts here that SQL Server needs no semicolon before.
    fn starts_table(&self, line: &str) -> bool {
        let upper =
            |text: &str| -> Vec<String> { text.split_whitespace().take(2).map(str::to_ascii_uppercase).collect() };
        let starts = |text: &str, all: &[&str]| all.contains(&upper(text).join(" ").as_str());
        let routines = ["PROC", "PROCEDURE", "FUNCTION", "TRIGGER", "OR", "VIEW"];
        let in_routine = upper(&self.current).last().is_some_and(|word| routines.contains(&word.as_str()));
        !in_routine && starts(line, &["CREATE TABLE", "ALTER TABLE", "CREATE TYPE"])
    }

    /// The length of what comes next, and whether it belongs to the statement.
    fn piece(&self, rest: &str) -> (usize, bool) {
        let line_end = || rest.find('\n').unwrap_or(rest.len());
        let to = |end: &str, from: usize| rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len());
        let is_mysql = self.dialect == Dialect::MySql;
        let first = rest.chars().next().map_or(0, char::len_utf8);
        match rest.as_bytes()[0] {
            b'-' if rest.starts_with("--") => (line_end(), false),
            b'#' if is_mysql => (line_end(), false),
            b'/' if rest.starts_with("/*") => (self.comment(rest), false),
            b'\'' => {
                let escapes = is_mysql || self.current.ends_with(['E', 'e']) && self.dialect == Dialect::PostgreSql;
                (quoted(rest, '\'', escapes), true)
            }
            b'"' => (quoted(rest, '"', is_mysql), true),
            b'`' if is_mysql => (quoted(rest, '`', false), true),
            b'[' if self.dialect == Dialect::SqlServer => (quoted(rest, ']', false), true),
            b'$' if self.dialect == Dialect::PostgreSql => match dollar_tag(rest) {
                Some(tag) => (to(tag, tag.len()), true),
                None => (1, true),
            },
            _ => (first, true),
        }
    }

    /// PostgreSQL's and SQL Server's comments nest.
    fn comment(&self, rest: &str) -> usize {
        let nests = matches!(self.dialect, Dialect::PostgreSql | Dialect::SqlServer);
        let (mut depth, mut at) = (1, 2);
        while depth > 0 {
            let Some(next) = rest[at..].find(['*', '/']) else { return rest.len() };
            at += next;
            if rest[at..].starts_with("*/") {
                (depth, at) = (depth - 1, at + 2);
            } else if nests && rest[at..].starts_with("/*") {
                (depth, at) = (depth + 1, at + 2);
            } else {
                at += 1;
            }
        }
        at
    }

    fn keep(&mut self, piece: &str) {
        if self.current.is_empty() {
            if piece.trim().is_empty() {
                return self.pass(piece);
            }
            self.start = self.line;
        }
        self.current.push_str(piece);
        self.pass(piece);
    }

    fn pass(&mut self, piece: &str) {
        self.line += piece.bytes().filter(|byte| *byte == b'\n').count();
    }

    /// Says whether rows of data follow the statement that ended.
    fn end_statement(&mut self) -> bool {
        let text = std::mem::take(&mut self.current);
        self.depth = 0;
        let text = text.trim();
        if text.is_empty() {
            return false;
        }
        let upper = text.get(..5).map(str::to_ascii_uppercase);
        let copies = self.dialect == Dialect::PostgreSql && upper.as_deref() == Some("COPY ");
        let has_data = copies && text.to_ascii_lowercase().ends_with("from stdin");
        self.found.push(Statement { line: self.start, text: text.to_string() });
        has_data
    }
}

/// The length of the rows behind `COPY … FROM stdin`, up to the line `\.`.
fn rows_of_copy(rest: &str) -> usize {
    let mut length = 0;
    for line in rest.split_inclusive('\n') {
        length += line.len();
        if line.trim_end() == "\\." {
            break;
        }
    }
    length
}

/// The length of a quoted text, in which a doubled quote stands for itself.
fn quoted(rest: &str, close: char, escapes: bool) -> usize {
    let mut chars = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if escapes && c == '\\' {
            chars.next();
        } else if c == close {
            match chars.peek() {
                Some((_, next)) if *next == close => drop(chars.next()),
                _ => return at + c.len_utf8(),
            }
        }
    }
    rest.len()
}

/// `$$` or `$tag$`.
fn dollar_tag(rest: &str) -> Option<&str> {
    let end = rest[1..].find('$')? + 1;
    let tag = &rest[1..end];
    let is_tag = !tag.starts_with(|c: char| c.is_ascii_digit()) && tag.chars().all(|c| c.is_alphanumeric() || c == '_');
    is_tag.then(|| &rest[..=end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, dialect: Dialect) -> String {
        let ddl = read(text, Some(dialect));
        let mut shown = String::new();
        for DdlTable { schema, name, columns, key, line } in &ddl.tables {
            let schema = schema.as_deref().unwrap_or("-");
            shown.push_str(&format!("{line}: {schema} {name} [{}]\n", key.join(", ")));
            for DdlColumn { name, sql_type, doc } in columns {
                let doc = doc.as_ref().map_or(String::new(), |doc| format!("  -- {doc}"));
                shown.push_str(&format!("    {name}: {sql_type}{doc}\n"));
            }
        }
        for Skipped { line, reason } in &ddl.skipped {
            shown.push_str(&format!("{line}: skipped: {reason}\n"));
        }
        shown
    }

    #[test]
    fn a_dump_of_postgresql() {
        let text = r#"--
-- PostgreSQL database dump
--
\restrict abc
SET statement_timeout = 0;
SELECT pg_catalog.set_config('search_path', '', false);
CREATE TYPE public.mood AS ENUM ('sad', 'ok; really', 'it''s');
CREATE TYPE public.pair AS (
    a integer,
    b text
);
CREATE DOMAIN public.price numeric(12,3)
    CONSTRAINT price_check CHECK ((VALUE >= (0)::numeric));
CREATE FUNCTION public.touch() RETURNS trigger LANGUAGE plpgsql AS $_$
BEGIN
    CREATE TABLE public.no (id integer); /* ' */
    RETURN NEW;
END;
$_$;
CREATE TABLE public.orders (
    id integer NOT NULL,
    customer_id bigint DEFAULT nextval('public.c_seq'::regclass) NOT NULL, -- who, and
    total numeric(10,2) DEFAULT 0.00,
    paid public.price,
    prices public.price[],
    status character varying(20) DEFAULT 'a, b);'::character varying,
    feeling public.mood,
    pairs public.pair[],
    "key" text,
    key text,
    "Größe" double precision,
    placed_at timestamp(3) without time zone DEFAULT now(),
    seen_at timestamp with time zone,
    at time without time zone,
    length interval day to second(3),
    flags bit varying(12),
    matrix integer[][],
    twice integer GENERATED ALWAYS AS ((customer_id * 2)) STORED,
    CONSTRAINT positive CHECK ((total >= (0)::numeric))
);
ALTER TABLE public.orders OWNER TO shop;
COMMENT ON COLUMN public.orders.total IS 'with tax, it''s in €';
COPY public.orders (id, total) FROM stdin;
1	it's; CREATE TABLE x (
\.
CREATE TABLE public.parts PARTITION OF public.orders DEFAULT;
CREATE TABLE public.copy AS SELECT * FROM public.orders;
CREATE UNLOGGED TABLE IF NOT EXISTS lines (order_id int, line int, PRIMARY KEY (order_id, line)) WITH (fillfactor=70);
ALTER TABLE ONLY public.orders
    ADD CONSTRAINT orders_pkey PRIMARY KEY (id);
CREATE TABLE broken (id integer, 'x
"#;
        insta::assert_snapshot!(shown(text, Dialect::PostgreSql), @"
        20: public orders [id]
            id: integer
            customer_id: bigint
            total: numeric(10,2)  -- with tax, it's in €
            paid: numeric(12,3)
            prices: numeric(12,3)[]
            status: character varying(20)
            feeling: mood
            pairs: pair[]
            key: text
            key: text
            Größe: double precision
            placed_at: timestamp(3)
            seen_at: timestamp with time zone
            at: time
            length: interval(3)
            flags: bit varying(12)
            matrix: integer[]
            twice: integer
        48: - lines [order_id, line]
            order_id: int
            line: int
        47: skipped: `copy` has no list of columns
        51: skipped: Unterminated string literal
        ");
    }

    #[test]
    fn a_dump_of_mysql() {
        let text = r#"-- MySQL dump
/*!40101 SET NAMES utf8 */;
DROP TABLE IF EXISTS `orders`;
/*!40101 SET character_set_client = utf8 */;
CREATE TABLE `orders` (
  `id` int(10) unsigned NOT NULL AUTO_INCREMENT,
  `key` varchar(50) CHARACTER SET latin1 COLLATE latin1_bin DEFAULT 'it\'s; a )',
  `total` decimal(10,2) NOT NULL DEFAULT '0.00' COMMENT 'with tax',
  `status` enum('a','b, c') DEFAULT NULL,
  `big` bigint(20) unsigned zerofill,
  `is_paid` tinyint(1),
  `at` datetime(6) DEFAULT current_timestamp(6) ON UPDATE current_timestamp(6),
  `b` double precision,
  `v` int(11) GENERATED ALWAYS AS (`id` + 1) VIRTUAL,
  PRIMARY KEY (`id`,`key`(10)),
  KEY `by_total` (`total`),
  UNIQUE KEY `u` (`at`),
  CONSTRAINT `f` FOREIGN KEY (`id`) REFERENCES `x` (`id`)
) ENGINE=InnoDB AUTO_INCREMENT=5 DEFAULT CHARSET=utf8mb4 /*!50100 PARTITION BY HASH (id) */;
INSERT INTO `orders` VALUES (1,'a;b');
DELIMITER ;;
CREATE PROCEDURE p() BEGIN CREATE TABLE no (id int); SELECT 1; END ;;
DELIMITER ;
create table shop.lines (order_id int primary key, # a comment; with a ;
  note text);
"#;
        insta::assert_snapshot!(shown(text, Dialect::MySql), @"
        5: - orders [id, key]
            id: int(10) unsigned
            key: varchar(50)
            total: decimal(10,2)  -- with tax
            status: enum
            big: bigint(20) unsigned
            is_paid: tinyint(1)
            at: datetime(6)
            b: double precision
            v: int(11)
        24: shop lines [order_id]
            order_id: int
            note: text
        ");
    }

    #[test]
    fn scripts_of_sql_server() {
        let text = r#"SET ANSI_NULLS ON
GO
CREATE TYPE [dbo].[Price] FROM [decimal](12, 3) NOT NULL
GO
CREATE TABLE [dbo].[Orders](
	[Id] [int] IDENTITY(1,1) NOT NULL,
	[Name] [nvarchar](max) NULL,
	[Total] [decimal](10, 2) NOT NULL CONSTRAINT [d] DEFAULT ((0)),
	[Paid] [dbo].[Price] NULL,
	[At] [datetime2](7) NULL,
	[Seen] datetimeoffset(3) NULL,
	[Twice]  AS ([Id]*(2)) PERSISTED,
 CONSTRAINT [PK_Orders] PRIMARY KEY CLUSTERED 
(
	[Id] ASC
)WITH (PAD_INDEX = OFF) ON [PRIMARY]
) ON [PRIMARY] TEXTIMAGE_ON [PRIMARY]
GO
CREATE PROCEDURE p AS
CREATE TABLE #no (id int)
GO
USE [shop]
CREATE TABLE a (id int)
CREATE TABLE b (
  id int
)
ALTER TABLE b ADD CONSTRAINT pk PRIMARY KEY (id)
"#;
        insta::assert_snapshot!(shown(text, Dialect::SqlServer), @"
        5: dbo Orders [Id]
            Id: int
            Name: nvarchar(max)
            Total: decimal(10,2)
            Paid: decimal(12,3)
            At: datetime2(7)
            Seen: datetimeoffset(3)
            Twice: computed
        23: - a []
            id: int
        24: - b [id]
            id: int
        ");
    }

    #[test]
    fn scripts_of_oracle() {
        let text = r#"REM the shop's tables
CREATE TABLE "SHOP"."ORDERS"
   (	"ID" NUMBER(10,0) NOT NULL ENABLE,
	"NAME" VARCHAR2(50 CHAR),
	"RATIO" NUMBER,
	"ROUND" NUMBER(5,-2),
	"AT" TIMESTAMP (9) WITH LOCAL TIME ZONE,
	"DAY" DATE DEFAULT SYSDATE,
	"L" INTERVAL DAY (2) TO SECOND (6),
	 CONSTRAINT "PK" PRIMARY KEY ("ID") USING INDEX PCTFREE 10,
	 SUPPLEMENTAL LOG DATA (ALL) COLUMNS
   ) SEGMENT CREATION IMMEDIATE PCTFREE 10 STORAGE(INITIAL 65536 NEXT 1048576) TABLESPACE "USERS";
CREATE TABLE lines (id NUMBER(5) PRIMARY KEY, raw_data LONG RAW)
/
"#;
        insta::assert_snapshot!(shown(text, Dialect::Oracle), @"
        2: SHOP ORDERS [ID]
            ID: number(10,0)
            NAME: varchar2(50)
            RATIO: number
            ROUND: number(5,-2)
            AT: timestamp(9) with time zone
            DAY: date
            L: interval(2)
        13: - lines [id]
            id: number(5)
            raw_data: long raw
        ");
    }

    #[test]
    fn the_dialect_with_most_columns_is_taken_when_none_is_known() {
        let text = "CREATE TABLE `a` (`id` int, `note` varchar(5) COMMENT 'x');";
        assert_eq!(read(text, None).tables[0].columns.len(), 2);
        let text = "CREATE TABLE [a]([id] [int], [note] [nvarchar](5))\nGO\nCREATE TABLE [b]([id] int)\nGO\n";
        assert_eq!(read(text, None).tables.len(), 2);
    }
}
