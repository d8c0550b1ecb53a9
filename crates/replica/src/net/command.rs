//! What administrators tell a replica to do.

use std::time::Duration;

use tokio::sync::oneshot;
use tonic::Status;
use twinbft_types::TwinId;

use super::Shared;
use crate::driver::Control;

/// How long the core's thread may take to answer.
const CORE_ANSWER_MAX: Duration = Duration::from_secs(1);

/// Listen to a sibling again (protocol.md 9).
pub(super) async fn readmit(shared: &Shared, twin: TwinId) -> Result<(), Status> {
    if !shared.progress.has_core() {
        return Err(Status::unavailable(
            "this replica has not connected to its postbox yet; try again",
        ));
    }
    let (answer, answered) = oneshot::channel();
    if shared
        .inbox
        .control(Control::Readmit { twin, answer })
        .is_err()
    {
        return Err(Status::resource_exhausted(
            "too many questions wait for the core; try again",
        ));
    }
    match tokio::time::timeout(CORE_ANSWER_MAX, answered).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(why))) => Err(Status::failed_precondition(why)),
        Ok(Err(_)) | Err(_) => Err(Status::unavailable("the core does not answer; try again")),
    }
}
