//! Many rows in few statements.
//!
//! A statement of each length is another statement to the engine, which reads and plans it once and then knows it. So
//! lengths are powers of two, and a few statements write any number of rows.

use std::fmt::Write;

use sqlx::{AnyConnection, AssertSqlSafe};

use super::connect::within;
use crate::control::store::{Read, StoreError};

/// Most rows in one statement; times the columns it stays far below the values that either engine takes in one.
const ROWS_MAX: usize = 64;

/// A value of one of the two types of column that there are.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Number(i64),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// A statement that writes rows: which columns of which table, and what becomes of a row that is there already.
#[derive(Debug, Clone, Copy)]
pub(super) struct Insert {
    pub(super) table: &'static str,
    pub(super) columns: &'static [&'static str],
    /// Empty where such a row is refused.
    pub(super) conflict: &'static str,
}

/// `($1, $2), ($3, $4)`: so many tuples of that many values.
pub(super) fn tuples(count: usize, width: usize) -> String {
    let mut text = String::with_capacity(count * width * 5);
    for at in 0..count * width {
        let before = match at {
            0 => "(",
            _ if at % width == 0 => "), (",
            _ => ", ",
        };
        // Writing into a String does not fail.
        let _ = write!(text, "{before}${}", at + 1);
    }
    text.push(')');
    text
}

/// A query with these values.
pub(super) fn bound(
    sql: String,
    values: impl IntoIterator<Item = Value>,
) -> sqlx::query::Query<'static, sqlx::Any, sqlx::any::AnyArguments> {
    // The text is made of names in this folder and of numbers of values, never of what somebody sent.
    values.into_iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, value| match value {
        Value::Text(text) => query.bind(text),
        Value::Number(number) => query.bind(number),
    })
}

impl Insert {
    fn sql(&self, rows: usize) -> String {
        let Self { table, columns, conflict } = self;
        format!("INSERT INTO {table} ({}) VALUES {} {conflict}", columns.join(", "), tuples(rows, columns.len()))
    }

    /// Writes rows, all of them or none.
    pub(super) async fn write(&self, connection: &mut AnyConnection, mut rows: Vec<Vec<Value>>) -> Read<()> {
        while !rows.is_empty() {
            let count = (1 << rows.len().ilog2()).min(ROWS_MAX);
            let rest = rows.split_off(count);
            let query = bound(self.sql(count), rows.into_iter().flatten());
            let written = within(query.execute(&mut *connection)).await?.rows_affected();
            // INVARIANT: what ended does not change. The statement passes over such a row; we do not.
            if written != count as u64 {
                let table = self.table;
                return Err(StoreError::Refused(format!(
                    "{} of {count} rows of `{table}` ended before",
                    count as u64 - written
                )));
            }
            rows = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_numbered_through_all_rows() {
        assert_eq!(tuples(1, 1), "($1)");
        assert_eq!(tuples(2, 3), "($1, $2, $3), ($4, $5, $6)");
        let insert = Insert { table: "t", columns: &["a", "b"], conflict: "ON CONFLICT DO NOTHING" };
        assert_eq!(insert.sql(2), "INSERT INTO t (a, b) VALUES ($1, $2), ($3, $4) ON CONFLICT DO NOTHING");
    }
}
