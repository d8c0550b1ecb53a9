//! The story that the demonstration tells by itself.

use std::time::Duration;

use twinbft_types::ReplicaId;

use super::director::Director;

/// Who lies: a twin of a backup host, so that the lie is about replies alone.
const LIAR: ReplicaId = ReplicaId::new(1, 1);
/// Who is killed afterwards, when all other hosts are correct again: f = 1.
const VICTIM: u8 = 2;
/// Shares of the whole time, of 100.
const PEACE: u32 = 25;
const LYING: u32 = 30;
const HEALED: u32 = 15;
const KILLED: u32 = 30;

/// Plays all acts. `duration` is what they take when nothing has to be waited for.
///
/// # Errors
/// When a process does not do what it is told to.
pub async fn play(
    director: &mut Director<'_>,
    duration: Duration,
    really_lie: bool,
) -> anyhow::Result<()> {
    let share = |percent: u32| duration * percent / 100;
    director.say("1. Sessions read, write and compare-and-swap; every host answers, and a client takes what 2 hosts agree on.");
    director.go_on(share(PEACE)).await;
    director.show().await;

    director.say(&format!("2. {LIAR} lies: it signs wrong results, and signs them well. Its host compares before anything goes out."));
    director.lie(LIAR, really_lie).await?;
    director.go_on(share(LYING)).await;
    director.show().await;

    director.say(&format!("3. {LIAR} comes to its senses."));
    director.heal().await?;
    director.go_on(share(HEALED)).await;
    director.show().await;

    director.say(&format!(
        "4. SIGKILL to all of h{VICTIM}, a backup host: its broker and both twins."
    ));
    director.kill(VICTIM).await?;
    let before = director.operations();
    director.go_on(share(KILLED)).await;
    let since = director.operations() - before;
    director.say(&format!(
        "   the other hosts go on: {since} operations answered since then"
    ));
    director.show().await;

    director.say("5. The end: is everything there that clients were told?");
    Ok(())
}
