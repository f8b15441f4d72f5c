//! The backend as its users call it, in one program: each file of its own would be linked by itself.

mod exact;
mod forms;
#[path = "../harness/mod.rs"]
mod harness;
mod large_values;
mod not_finite;
mod records;
mod rows;
mod states;
mod step;
mod stored;
