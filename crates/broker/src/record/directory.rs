//! The segment files on disk: found at start, made, and dropped for room.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use twinbft_recording::{Damage, End, SegmentReader, file_name, segments};

/// The files, oldest first.
pub struct Directory {
    dir: PathBuf,
    files: VecDeque<(u64, u64)>,
    /// The number of the next file.
    next: u64,
}

/// What an earlier process has left.
pub struct Found {
    /// The files.
    pub directory: Directory,
    /// Where the last segment ends.
    pub end: Option<End>,
    /// What is wrong with the last one.
    pub damage: Option<Damage>,
}

/// Why a directory is of no use.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The kernel refuses.
    #[error("cannot use {}: {error}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What it says.
        error: io::Error,
    },
    /// Somebody else's.
    #[error("{} is the record of host {host} of cluster '{cluster}'; name another record_dir", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Whose.
        cluster: String,
        /// Whose.
        host: u32,
    },
}

impl Directory {
    /// Makes or reads a directory, which must be empty or of this host. What the last write left unfinished is cut off.
    pub fn open(dir: &Path, cluster: &str, host: u32) -> Result<Found, DirectoryError> {
        let failed = |error| DirectoryError::Io {
            dir: dir.to_owned(),
            error,
        };
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir);
        made.map_err(failed)?;
        let mut files = VecDeque::new();
        for (serial, path) in segments(dir).map_err(failed)? {
            files.push_back((serial, fs::metadata(path).map_err(failed)?.len()));
        }
        let mut directory = Self {
            dir: dir.to_owned(),
            next: files.back().map_or(0, |(serial, _)| serial + 1),
            files,
        };
        let (mut end, mut damage) = (None, None);
        while let Some((serial, _)) = directory.files.back().copied() {
            let path = directory.path(serial);
            let mut reader = match SegmentReader::open(&path) {
                Ok(reader) => reader,
                Err(cut) if cut.is_torn => {
                    // A crash in the midst of its header: nothing was ever in it.
                    fs::remove_file(&path).map_err(failed)?;
                    directory.files.pop_back();
                    directory.next = serial;
                    continue;
                }
                Err(broken) => {
                    damage = Some(broken);
                    break;
                }
            };
            let header = reader.header();
            if header.cluster_id != cluster || header.host != host {
                return Err(DirectoryError::Foreign {
                    dir: dir.to_owned(),
                    cluster: header.cluster_id.clone(),
                    host: header.host,
                });
            }
            let mut payload = Vec::new();
            loop {
                match reader.next(&mut payload) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(cut) if cut.is_torn => {
                        let file = File::options().write(true).open(&path).map_err(failed)?;
                        file.set_len(cut.offset).map_err(failed)?;
                        directory.resize(cut.offset);
                        break;
                    }
                    Err(broken) => {
                        damage = Some(broken);
                        break;
                    }
                }
            }
            end = Some(reader.end());
            break;
        }
        Ok(Found {
            directory,
            end,
            damage,
        })
    }

    fn path(&self, serial: u64) -> PathBuf {
        self.dir.join(file_name(serial))
    }

    /// The number of the next file.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Makes the next file.
    pub fn create(&mut self) -> io::Result<File> {
        let path = self.path(self.next);
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        self.files.push_back((self.next, 0));
        self.next += 1;
        Ok(file)
    }

    /// Removes the newest file, which has nothing in it.
    pub fn undo_create(&mut self) {
        if let Some((serial, _)) = self.files.pop_back() {
            // Its number is used again; a file that cannot be removed is an error of the next attempt.
            let _kept = fs::remove_file(self.path(serial));
            self.next = serial;
        }
    }

    /// The newest file has this length now.
    pub fn resize(&mut self, bytes: u64) {
        if let Some((_, length)) = self.files.back_mut() {
            *length = bytes;
        }
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes).sum()
    }

    /// How many files.
    pub fn len(&self) -> u64 {
        self.files.len() as u64
    }

    /// Drops the oldest files until `more` bytes fit below `bytes_max`, never the newest. How many went, and whether
    /// there is room now.
    pub fn make_room(&mut self, more: u64, bytes_max: u64) -> io::Result<(u64, bool)> {
        let mut dropped = 0;
        while self.bytes().saturating_add(more) > bytes_max && self.files.len() > 1 {
            let (serial, _) = self.files[0];
            match fs::remove_file(self.path(serial)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            self.files.pop_front();
            dropped += 1;
        }
        Ok((dropped, self.bytes().saturating_add(more) <= bytes_max))
    }

    /// Makes names durable.
    pub fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}
