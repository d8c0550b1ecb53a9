//! What happened, line by line: into a digest, for comparing two runs of one seed, or onto the screen.

use twinbft_types::Digest;

/// Takes in the lines of a run.
#[derive(Debug, Default)]
pub enum Tracer {
    /// Nowhere: fast.
    #[default]
    Off,
    /// Into a chain of digests.
    Digest(Digest),
    /// Onto standard output, and into the chain.
    Print(Digest),
}

impl Tracer {
    /// Into a digest only.
    #[must_use]
    pub const fn digesting() -> Self {
        Self::Digest(Digest::ZERO)
    }

    /// Onto standard output.
    #[must_use]
    pub const fn printing() -> Self {
        Self::Print(Digest::ZERO)
    }

    /// One line, made only when somebody wants it.
    pub fn line(&mut self, line: impl FnOnce() -> String) {
        match self {
            Self::Off => {}
            Self::Digest(chain) => *chain = chained(*chain, &line()),
            Self::Print(chain) => {
                let line = line();
                println!("{line}");
                *chain = chained(*chain, &line);
            }
        }
    }

    /// The digest over all lines so far.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        match self {
            Self::Off => Digest::ZERO,
            Self::Digest(chain) | Self::Print(chain) => *chain,
        }
    }
}

fn chained(chain: Digest, line: &str) -> Digest {
    Digest::of_canonical(b"sim/line", &(chain, line))
}
