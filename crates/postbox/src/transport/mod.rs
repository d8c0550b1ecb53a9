//! How a log region and an append ring get from the broker to a twin. One module a transport; all
//! above them is the same code.

pub mod local;
pub mod xen;
