//! Reads through the overlays to the store.

use std::iter::Peekable;
use std::ops::Bound;

use bytes::Bytes;
use redb::AccessGuard;

use crate::kv::overlay::{Overlay, Written};
use crate::kv::store::View;

type Row = (
    AccessGuard<'static, &'static [u8]>,
    AccessGuard<'static, &'static [u8]>,
);

/// The state after the last executed slot: the newest overlay, the one that is being written, the store.
pub(crate) struct Layers<'a> {
    pub(crate) overlays: [Option<&'a Overlay>; 2],
    pub(crate) base: &'a View,
}

impl<'a> Layers<'a> {
    fn overlays(&self) -> impl Iterator<Item = &'a Overlay> {
        self.overlays.into_iter().flatten()
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Written>, redb::Error> {
        for overlay in self.overlays() {
            if let Some(write) = overlay.writes.get(key) {
                return Ok(write.clone());
            }
        }
        self.base.get(key)
    }

    /// The slot of the last deletion in a bucket, or 0.
    pub(crate) fn deleted_slot_in(&self, bucket: u16) -> u64 {
        self.overlays()
            .find_map(|overlay| overlay.deleted_slots.get(&bucket).copied())
            .unwrap_or_else(|| self.base.tree.bucket(bucket).deleted_slot)
    }

    /// The slot of the last deletion of any key, or 0.
    pub(crate) fn deleted_slot(&self) -> u64 {
        self.overlays()
            .map(|overlay| overlay.deleted_slot)
            .fold(self.base.tree.deleted_slot(), u64::max)
    }

    /// The keys `start <= key < end`, ascending.
    pub(crate) fn range(&self, start: &[u8], end: Option<&[u8]>) -> Result<Merge<'a>, redb::Error> {
        // An empty range that is written backwards is a range that the maps refuse with a panic.
        let end = match end {
            Some(end) if end <= start => Bound::Excluded(start),
            Some(end) => Bound::Excluded(end),
            None => Bound::Unbounded,
        };
        let bounds = (Bound::Included(start), end);
        let rows: Box<dyn Iterator<Item = redb::Result<Row>>> =
            Box::new(self.base.entries.range::<&[u8]>(bounds)?);
        let range = |overlay: &'a Overlay| {
            let writes: OverlayRange<'a> = Box::new(overlay.writes.range::<[u8], _>(bounds));
            writes.peekable()
        };
        Ok(Merge {
            overlays: self.overlays().map(range).collect(),
            rows: rows.peekable(),
            base: self.base,
        })
    }
}

type OverlayRange<'a> = Box<dyn Iterator<Item = (&'a Bytes, &'a Option<Written>)> + 'a>;

/// The live keys of a range through all layers.
pub(crate) struct Merge<'a> {
    /// Newest first.
    overlays: Vec<Peekable<OverlayRange<'a>>>,
    rows: Peekable<Box<dyn Iterator<Item = redb::Result<Row>>>>,
    /// Where the rows come from.
    base: &'a View,
}

impl Merge<'_> {
    /// The next live key and its value.
    pub(crate) fn next(&mut self) -> Result<Option<(Bytes, Written)>, redb::Error> {
        loop {
            let Some((key, write)) = self.next_write()? else {
                return Ok(None);
            };
            if let Some(written) = write {
                return Ok(Some((key, written)));
            }
        }
    }

    /// The next key of any layer as the newest layer that has it says.
    fn next_write(&mut self) -> Result<Option<(Bytes, Option<Written>)>, redb::Error> {
        let row = match self.rows.next_if(Result::is_err) {
            Some(error) => return Err(error.err().expect("just seen").into()),
            None => self.rows.peek().map(|row| {
                let row = row.as_ref().unwrap_or_else(|_| unreachable!("just seen"));
                row.0.value()
            }),
        };
        let writes = self.overlays.iter_mut();
        let writes = writes.filter_map(|range| range.peek().map(|(key, _)| &***key));
        let Some(key) = writes.chain(row).min() else {
            return Ok(None);
        };
        let key = Bytes::copy_from_slice(key);
        let mut write = None;
        for range in &mut self.overlays {
            let here = range.next_if(|(other, _)| **other == key);
            write = write.or(here.map(|(_, write)| write.clone()));
        }
        let here = |row: &redb::Result<Row>| row.as_ref().is_ok_and(|row| *row.0.value() == *key);
        let Some(row) = self.rows.next_if(here) else {
            return Ok(Some((key, write.expect("some layer has the smallest key"))));
        };
        if let Some(write) = write {
            return Ok(Some((key, write)));
        }
        let (_, stored) = row?;
        let written = self.base.written(&key, stored.value())?;
        Ok(Some((key, Some(written))))
    }
}
