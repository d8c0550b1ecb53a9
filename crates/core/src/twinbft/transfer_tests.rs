use super::*;
use crate::config::Execution;
use crate::twinbft::testing::{replica, slot};

/// 4.7: a view begins without a slot that was executed tentatively, while a state is being taken over or not. Where execution
/// stands then, and what the service is told.
fn undone(is_activating: bool) -> (Slot, Vec<Effect>) {
    let mut replica = replica(Tuning {
        execution: Execution::Tentative,
        ..Tuning::default()
    });
    let (first, one) = slot(Slot(1), Digest::ZERO, 0);
    let (second, _) = slot(Slot(2), one, 0);
    replica.slots.insert(Slot(1), first);
    replica.slots.insert(Slot(2), second);
    replica.commit.stand_at(Slot(2));
    let mut out = Effects::default();
    replica.poll_execution(&mut out);
    assert_eq!(replica.execution.begun(), Slot(2));
    if is_activating {
        let parts = CheckpointParts {
            service: Digest::ZERO,
            sessions: Digest::ZERO,
            config: Digest::ZERO,
            history: Digest::ZERO,
            timestamp_us: 1,
        };
        let offer = CheckpointOffer {
            slot: Slot(replica.config.tuning.checkpoint_slots),
            parts,
            certificates: Vec::new(),
        };
        replica.begin_fetch(&offer, &mut out);
        let fetching = replica.transfer.fetching.as_mut();
        fetching.expect("just begun").activating = true;
    }
    let mut out = Effects::default();
    replica.undo_above(Slot(1), &mut out);
    (replica.execution.begun(), out.0)
}

#[test]
fn what_is_undone_while_a_state_is_taken_over_is_not_the_services_affair() {
    let (begun, effects) = undone(false);
    assert_eq!(begun, Slot(0));
    assert!(matches!(effects[..], [Effect::Rollback { slot: Slot(0) }]));
    let (begun, effects) = undone(true);
    assert_eq!(begun, Slot(0), "it stands on nothing that is gone");
    assert!(effects.is_empty());
}
