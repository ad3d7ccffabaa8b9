//! A request between two pods that carries a secret in clear text, as careless programs do: what a
//! listener on the underlay must not be able to read.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::Lab;
use crate::load::find_pod;

const PORT: u16 = 8080;

/// `from` asks `to` for the secret over HTTP and reads it; both are pods, `n1/p1`.
pub fn exchange(lab: &Lab, from: &str, to: &str, secret: &str, patience: Duration) -> Result<()> {
    let address = find_pod(lab, to)?.addresses.first().copied();
    let server = SocketAddr::new(
        address.with_context(|| format!("{to} has no address"))?,
        PORT,
    );
    let listener = lab.inside(to, || {
        TcpListener::bind(server).with_context(|| format!("listen on {server} in {to}"))
    })?;
    listener.set_nonblocking(true)?;
    let answered = std::thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&listener, secret, patience));
        let asked = lab.inside(from, || ask(server, patience));
        let served = serving.join();
        let answer = asked.with_context(|| format!("{from} asks {to} ({server})"))?;
        served.map_err(|_| anyhow::anyhow!("the server of {to} panicked"))??;
        anyhow::Ok(answer)
    })?;
    ensure!(
        answered.contains(secret),
        "{to} answered {from} with something else than the secret"
    );
    Ok(())
}

fn serve(listener: &TcpListener, secret: &str, patience: Duration) -> Result<()> {
    let end = std::time::Instant::now() + patience;
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                ensure!(std::time::Instant::now() < end, "nobody asked");
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error).context("accept"),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(patience))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && line != "\r\n" {
        line.clear();
    }
    let length = secret.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{secret}"
    )?;
    Ok(())
}

fn ask(server: SocketAddr, patience: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, patience)?;
    stream.set_read_timeout(Some(patience))?;
    write!(
        stream,
        "GET /secret HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer)?;
    Ok(answer)
}
