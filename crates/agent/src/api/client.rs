//! The other end of the socket, for programs that ask an agent.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{MAX_RESPONSE, Request, Response};

/// Asks the agent behind `socket` and waits at most `timeout` for each step. Blocks. An answer
/// that is a refusal comes back as an error with the agent's reason.
pub fn ask(socket: &Path, request: &Request, timeout: Duration) -> Result<Response> {
    let stream = UnixStream::connect(socket).with_context(|| {
        format!(
            "{}: no agent answers; is `testudo agent` running on this node?",
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut line = serde_json::to_vec(request).context("writing the request")?;
    line.push(b'\n');
    let context = || format!("{}: asking the agent", socket.display());
    (&stream).write_all(&line).with_context(context)?;
    let mut answer = Vec::new();
    BufReader::new((&stream).take(MAX_RESPONSE as u64))
        .read_until(b'\n', &mut answer)
        .with_context(context)?;
    let response: Response = serde_json::from_slice(&answer)
        .with_context(|| format!("{}: the agent's answer is not readable", socket.display()))?;
    match response.error {
        Some(error) if !response.ok => bail!("{}: {error}", socket.display()),
        _ => Ok(response),
    }
}
