//! stub
use crate::domain::{action::ActionClass, id::ActionName};
/// stub
#[derive(Debug)]
pub struct ActionSpec {
    /// n
    pub name: ActionName,
    /// c
    pub class: ActionClass,
    /// i
    pub index: usize,
    /// s
    pub streaming: bool,
    /// u
    pub upgrade: Option<String>,
}
