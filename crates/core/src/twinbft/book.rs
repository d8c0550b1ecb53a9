//! Signatures of this host's twins on statements that its log has decided (protocol.md 3).

use std::collections::{BTreeMap, VecDeque};

use twinbft_types::{Authenticator, Certificate, HostId, Incarnation, Signed, Statement, TwinId};

/// Statements that are kept; the oldest gives way. Only certificates still under way suffer.
const STATEMENTS_MAX: usize = 2048;

/// Statements about views that are kept besides: a WISH, a VIEW-CHANGE and a NEW-VIEW of each of the last views.
const PINNED_MAX: usize = 32;

#[derive(Clone, Debug, Default)]
struct Page {
    authenticators: Vec<Authenticator>,
    /// How many signatures the certificate had when it was last handed out.
    handed_out: usize,
}

/// Collects signatures on decided statements until there are `q`.
#[derive(Clone, Debug)]
pub struct SignatureBook {
    host: HostId,
    incarnation: Incarnation,
    quorum: usize,
    pages: BTreeMap<Statement, Page>,
    order: VecDeque<Statement>,
    /// Statements about views, which are asked for as long as the view lasts, oldest first.
    pinned: VecDeque<Statement>,
    /// Each sibling's latest signature on the ACK of a heartbeat that this twin has not received yet: the count is
    /// the only part of a statement that is not in the log.
    early: BTreeMap<TwinId, (Statement, Authenticator)>,
}

impl SignatureBook {
    pub const fn new(host: HostId, quorum: usize) -> Self {
        Self {
            host,
            incarnation: Incarnation(0),
            quorum,
            pages: BTreeMap::new(),
            order: VecDeque::new(),
            pinned: VecDeque::new(),
            early: BTreeMap::new(),
        }
    }

    /// The host's incarnation, as its log shows it (8). Signatures on statements of an earlier one are of no use in this.
    pub fn renew(&mut self, incarnation: Incarnation) {
        if self.incarnation != incarnation {
            *self = Self {
                incarnation,
                ..Self::new(self.host, self.quorum)
            };
        }
    }

    /// Whether this twin's signature on a statement is missing.
    pub fn lacks(&self, statement: &Statement, twin: TwinId) -> bool {
        let page = self.pages.get(statement);
        page.is_none_or(|page| page.authenticators.iter().all(|a| a.twin != twin))
    }

    /// The log has decided this statement; whether that is news.
    pub fn decide(&mut self, statement: &Statement) -> bool {
        if self.pages.contains_key(statement) {
            return false;
        }
        let (order, most) = match statement {
            Statement::Wish { .. } | Statement::ViewChange { .. } | Statement::NewView { .. } => {
                (&mut self.pinned, PINNED_MAX)
            }
            _ => (&mut self.order, STATEMENTS_MAX),
        };
        if order.len() >= most
            && let Some(oldest) = order.pop_front()
        {
            self.pages.remove(&oldest);
        }
        order.push_back(statement.clone());
        let mut page = Page::default();
        self.early.retain(|_, (of, authenticator)| {
            let matches = of == statement;
            if matches {
                page.authenticators.push(authenticator.clone());
            }
            !matches
        });
        self.pages.insert(statement.clone(), page);
        true
    }

    /// Takes in a signature on a decided statement; others are ignored (release rule: no correct twin signs
    /// what is not decided). Answers with the certificate when this signature made the quorum.
    pub fn sign(
        &mut self,
        statement: &Statement,
        authenticator: Authenticator,
    ) -> Option<Certificate> {
        if matches!(statement, Statement::Ack { beat: Some(_), .. })
            && !self.pages.contains_key(statement)
        {
            self.early
                .insert(authenticator.twin, (statement.clone(), authenticator));
            return None;
        }
        let page = self.pages.get_mut(statement)?;
        if page
            .authenticators
            .iter()
            .any(|a| a.twin == authenticator.twin)
        {
            return None;
        }
        page.authenticators.push(authenticator);
        let complete = page.authenticators.len() >= self.quorum && page.handed_out < self.quorum;
        if !complete {
            return None;
        }
        page.handed_out = page.authenticators.len();
        self.certificate(statement)
    }

    /// The certificate, when there are `q` signatures.
    pub fn certificate(&self, statement: &Statement) -> Option<Certificate> {
        let page = self.pages.get(statement)?;
        (page.authenticators.len() >= self.quorum).then(|| Certificate {
            signed: Signed {
                host: self.host,
                incarnation: self.incarnation,
                statement: statement.clone(),
            },
            authenticators: page.authenticators.clone(),
        })
    }
}
