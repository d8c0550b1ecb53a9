//! The Unix socket by which a demonstration tells a replica to misbehave.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::Double;
use crate::driver::{Control, Inbox};

/// Longest line that is read.
const LINE_BYTES_MAX: u64 = 256;

/// Listens on `path`: lines `byzantine NAME`, each answered by `ok` or `error: …`. Runs for ever.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve(path: PathBuf, inbox: Arc<Inbox>) -> anyhow::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
    }
    // What a process before this one left behind.
    if path.exists() {
        std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    let listener =
        UnixListener::bind(&path).with_context(|| format!("binding {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protecting {}", path.display()))?;
    loop {
        let (stream, _) = listener
            .accept()
            .await
            .context("accepting on the control socket")?;
        let inbox = inbox.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &inbox).await {
                tracing::debug!("control socket: {error}");
            }
        });
    }
}

async fn converse(stream: UnixStream, inbox: &Inbox) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        (&mut reader)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
            .await?;
        if line.is_empty() {
            return Ok(());
        }
        let answer = match obey(&String::from_utf8_lossy(&line), inbox) {
            Ok(()) => "ok\n".to_owned(),
            Err(why) => format!("error: {why}\n"),
        };
        writer.write_all(answer.as_bytes()).await?;
    }
}

fn obey(line: &str, inbox: &Inbox) -> Result<(), String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let names = || Double::ALL.map(Double::name).join(" | ");
    let (name, share) = match words[..] {
        ["byzantine", name] => (name, None),
        ["byzantine", name, share] => (name, Some(share)),
        _ => return Err(format!("say: byzantine {}", names())),
    };
    let double = Double::from_words(name, share).ok_or_else(|| {
        format!(
            "there is no double {}; say: byzantine {}, and refuse with a share from 0 to 1",
            words[1..].join(" "),
            names()
        )
    })?;
    inbox
        .control(Control::Double(double))
        .map_err(|_| "the core is busy; say it again".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_obeyed_or_explained() {
        let inbox = Inbox::new(twinbft_postbox::Waker::new().unwrap());
        assert_eq!(obey("byzantine wrong-result\n", &inbox), Ok(()));
        assert_eq!(obey(" byzantine   off", &inbox), Ok(()));
        assert_eq!(obey("byzantine refuse 0.01", &inbox), Ok(()));
        assert!(obey("byzantine refuse", &inbox).is_err());
        assert!(obey("byzantine refuse 2", &inbox).is_err());
        assert!(obey("byzantine mute 0.5", &inbox).is_err());
        assert!(inbox.has_work());
        assert!(obey("byzantine rude", &inbox).unwrap_err().contains("rude"));
        assert!(
            obey("\u{fffd}", &inbox)
                .unwrap_err()
                .contains("wrong-result")
        );
    }
}
