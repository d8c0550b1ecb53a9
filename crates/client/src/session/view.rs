//! Whom to ask first: what the replicas' hints say about the current view.

use twinbft_types::{ReplicaId, Shape, View};

/// The view hints of all replicas, and the view to believe in.
///
/// A hint is not authenticated beyond its connection, and it decides nothing but whose twins get a request first.
/// Still a liar must not send every request astray: a view counts once `q` twins of one host claim it or a later
/// one, so that at least one correct twin does.
#[derive(Clone, Debug)]
pub struct ViewHints {
    shape: Shape,
    /// The latest hint of each replica, by host, then twin.
    hints: Vec<View>,
    /// Invariant: never goes back.
    view: View,
}

impl ViewHints {
    /// Nothing heard yet: view 0.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            hints: vec![View(0); usize::from(shape.hosts()) * usize::from(shape.twins())],
            view: View(0),
        }
    }

    /// The view to believe in.
    #[must_use]
    pub const fn view(&self) -> View {
        self.view
    }

    /// Takes in what `from` says. True when the view to believe in has changed.
    pub fn handle_hint(&mut self, from: ReplicaId, view: View) -> bool {
        if !self.shape.contains(from) {
            return false;
        }
        let twins = usize::from(self.shape.twins());
        let first = usize::from(from.host.0) * twins;
        let hint = &mut self.hints[first + usize::from(from.twin.0)];
        if *hint == view {
            return false;
        }
        *hint = view;
        let mut of_host = self.hints[first..first + twins].to_vec();
        of_host.sort_unstable();
        // The q-th largest: q twins claim this view or a later one.
        let claimed = of_host[twins - self.shape.twin_quorum()];
        let newer = claimed > self.view;
        if newer {
            self.view = claimed;
        }
        newer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_twin_alone_moves_nobody() {
        let mut hints = ViewHints::new(Shape::new(3, 3).unwrap());
        assert!(!hints.handle_hint(ReplicaId::new(1, 0), View(900)));
        assert!(!hints.handle_hint(ReplicaId::new(2, 0), View(900)));
        assert_eq!(hints.view(), View(0));
        assert!(hints.handle_hint(ReplicaId::new(1, 2), View(4)));
        assert_eq!(hints.view(), View(4));
    }

    #[test]
    fn a_late_hint_does_not_lead_back() {
        let mut hints = ViewHints::new(Shape::new(1, 2).unwrap());
        hints.handle_hint(ReplicaId::new(0, 0), View(7));
        assert!(hints.handle_hint(ReplicaId::new(0, 1), View(7)));
        assert!(!hints.handle_hint(ReplicaId::new(0, 0), View(3)));
        assert!(!hints.handle_hint(ReplicaId::new(9, 0), View(30)));
        assert_eq!(hints.view(), View(7));
    }
}
