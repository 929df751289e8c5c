//! Commands and flags; the only module that prints.
