//! How large STATE can become (protocol.md 2): every part of the automaton is bounded, and so is their sum.

use twinbft_types::Shape;

use super::Bounds;
use super::results::{CHECKPOINTS_MAX, LISTED_DIGESTS_MAX, SLOT_RESULTS_MAX, TALLIES_MAX};
use super::view::NV_PROPOSALS_MAX;
use super::votes::{HELD_BYTES, NACKED_KEYS_MAX, REQUESTS_OF_A_TWIN_MAX};

/// Numbers, lengths and each twin's views.
const REST_BYTES: u64 = 4096;
const DIGEST_BYTES: u64 = 32;
const REQUEST_REF_BYTES: u64 = 52;

impl Bounds {
    /// The most bytes that [`super::HostLog::to_state`] can have in a cluster of this shape. The postbox must take as
    /// much with a trim: `postbox.state_bytes_max` of `cluster.toml`.
    #[must_use]
    pub fn state_bytes_max(&self, shape: Shape) -> u64 {
        let twins = u64::from(shape.twins());
        let count = |number: usize| number as u64;
        let candidate = 8 + 4 + 8 + 4 + 4 + DIGEST_BYTES + 2;
        let candidates =
            self.pipeline_depth * (candidate + self.batch_requests_max * REQUEST_REF_BYTES);
        let vote = 1 + DIGEST_BYTES;
        let keyed = 8 + 4 + twins * vote;
        let accepts = 2 * self.checkpoint_slots * keyed;
        let held = 2 * twins * (32 + count(REQUESTS_OF_A_TWIN_MAX) * HELD_BYTES);
        let nacked = count(NACKED_KEYS_MAX) * 4;
        // A tally is open while a twin's RESULT is missing, and lists each whole once.
        let said = twins.saturating_sub(1) * (1 + 2 * DIGEST_BYTES);
        let lists = twins.saturating_sub(1) * (DIGEST_BYTES + 4);
        let tallies = count(TALLIES_MAX) * (8 + 4 + 4 + said + lists)
            + count(LISTED_DIGESTS_MAX) * DIGEST_BYTES;
        let histories = count(TALLIES_MAX) * (8 + 8 + DIGEST_BYTES);
        let slot_results = count(SLOT_RESULTS_MAX) * (8 + 2 * DIGEST_BYTES);
        let checkpoints = count(CHECKPOINTS_MAX) * keyed;
        // Open NV-PROPOSEs and the installed one, NV-ACCEPTs, incarnations.
        let hosts = u64::from(shape.hosts());
        let views = (count(NV_PROPOSALS_MAX) + 1) * (64 + hosts * (1 + DIGEST_BYTES))
            + twins * (1 + 8 + DIGEST_BYTES)
            + hosts * 8;
        // PEERs, and HELLOs, AMNESIAs and what twins that have forgotten have learned.
        let recovery = hosts * twins * (2 * 9 + DIGEST_BYTES)
            + twins * (2 * (64 + DIGEST_BYTES) + 2 * hosts * 8 + 2 * (17 + DIGEST_BYTES));
        REST_BYTES
            + views
            + recovery
            + candidates
            + accepts
            + held
            + nacked
            + tallies
            + histories
            + slot_results
            + checkpoints
    }
}
