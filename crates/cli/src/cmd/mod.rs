//! One module for each subcommand: its arguments and what it does.

pub mod audit;
pub mod bench;
pub mod chaos;
pub mod check;
pub mod completion;
pub mod control;
pub mod demo;
pub mod doctor;
pub mod down;
pub mod evidence;
pub mod guard;
pub mod init;
pub mod keygen;
pub mod kv;
pub mod launch;
pub mod readmit;
pub mod recover;
pub mod secret_file;
pub mod status;
pub mod up;
