//! Answers over HTTP: three addresses, `GET` alone.
//!
//! It has a thread and a runtime of its own, so that it answers also when all others are busy. So small a part of HTTP is
//! less to look after than a server library: a request is its first line, and each connection is closed after its answer.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};

use super::Metrics;
use crate::error::{Kind, Situation};

/// How long a request may be. Ours need no hundred bytes; proxies add headers.
const REQUEST_BYTES: usize = 8 << 10;

/// How long a client has to ask and to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections at the same time. Further ones wait in the system's queue.
const CONNECTIONS: usize = 64;

/// How long to wait after a connection could not be taken, which is when there are no more file handles.
const BREATHE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("metrics cannot be served at `{listen}`")]
    Listen {
        listen: String,
        #[source]
        source: io::Error,
    },
    #[error("the thread that serves metrics cannot be started")]
    NoThread {
        #[source]
        source: io::Error,
    },
}

impl Situation for MetricsError {
    fn kind(&self) -> Kind {
        match self {
            MetricsError::Listen { .. } => Kind::Config,
            MetricsError::NoThread { .. } => Kind::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        let MetricsError::Listen { source, .. } = self else { return None };
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => {
                "another process listens there; name another port in `metrics.listen` or `--metrics`, or port 0 for one \
                 that is free"
            }
            io::ErrorKind::AddrNotAvailable => {
                "this machine has no such address; `127.0.0.1` is for this machine alone, `0.0.0.0` for everybody who \
                 reaches it"
            }
            io::ErrorKind::PermissionDenied => "ports below 1024 need rights; name a higher one",
            _ => "check the address in `metrics.listen` or `--metrics`",
        };
        Some(hint.to_string())
    }
}

/// Answers for as long as it is there.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `address:port`, from now on.
    pub fn start(listen: &str, metrics: Arc<Metrics>) -> Result<Self, MetricsError> {
        let failed = |source| MetricsError::Listen { listen: listen.to_string(), source };
        let no_thread = |source| MetricsError::NoThread { source };
        let listener = TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
        let (end, ended) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    // It is sent, or whoever could send it is gone.
                    _ = ended => {}
                    refused = take_connections(listener, metrics) => {
                        tracing::error!(error = %refused, "metrics are no longer served");
                    }
                }
            });
        };
        let thread = std::thread::Builder::new().name("metrics".to_string()).spawn(serve).map_err(no_thread)?;
        tracing::info!(%address, "metrics are served");
        Ok(Server { address, end: Some(end), thread: Some(thread) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It ends at once, with the connections there are, and has nothing to tell.
            let _ = thread.join();
        }
    }
}

/// Ends only when the listener is of no use.
async fn take_connections(listener: TcpListener, metrics: Arc<Metrics>) -> io::Error {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return io::ErrorKind::Other.into() };
        match listener.accept().await {
            Ok((stream, _)) => {
                let metrics = metrics.clone();
                tokio::spawn(async move {
                    // Whoever asks too slowly, or goes away, gets no answer.
                    let _ = tokio::time::timeout(PATIENCE, converse(stream, &metrics)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection was not taken");
                tokio::time::sleep(BREATHE).await;
            }
        }
    }
}

async fn converse(mut stream: TcpStream, metrics: &Metrics) -> io::Result<()> {
    let mut request = Vec::new();
    let is_whole = |request: &[u8]| request.windows(4).any(|end| end == b"\r\n\r\n");
    while !is_whole(&request) {
        if request.len() > REQUEST_BYTES {
            stream
                .write_all(Answer::plain("431 Request Header Fields Too Large", "too long\n").bytes().as_slice())
                .await?;
            return stream.shutdown().await;
        }
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let first = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    stream.write_all(answer(&String::from_utf8_lossy(first), metrics).bytes().as_slice()).await?;
    stream.shutdown().await
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: &'static str,
    content_type: &'static str,
    more: &'static str,
    body: String,
}

impl Answer {
    fn plain(status: &'static str, body: impl Into<String>) -> Self {
        Answer { status, content_type: "text/plain; charset=utf-8", more: "", body: body.into() }
    }

    fn bytes(&self) -> Vec<u8> {
        let Answer { status, content_type, more, body } = self;
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n{more}Connection: close\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// The answer to a request's first line.
fn answer(first_line: &str, metrics: &Metrics) -> Answer {
    let words: Vec<&str> = first_line.split(' ').collect();
    let [method, target, version] = words[..] else { return Answer::plain("400 Bad Request", "this is not HTTP\n") };
    if !version.starts_with("HTTP/1.") {
        return Answer::plain("400 Bad Request", "this is not HTTP\n");
    }
    let path = target.split('?').next().unwrap_or_default();
    if !["/metrics", "/livez", "/readyz"].contains(&path) {
        return Answer::plain("404 Not Found", "there are /metrics, /livez and /readyz\n");
    }
    if method != "GET" {
        let refused = Answer::plain("405 Method Not Allowed", "there is GET alone\n");
        return Answer { more: "Allow: GET\r\n", ..refused };
    }
    match path {
        "/livez" => match metrics.standstill() {
            None => Answer::plain("200 OK", "ok\n"),
            Some(what) => Answer::plain("503 Service Unavailable", what + "\n"),
        },
        "/readyz" if metrics.is_ready() => Answer::plain("200 OK", "ok\n"),
        "/readyz" => Answer::plain("503 Service Unavailable", "reading has not begun\n"),
        _ => Answer {
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            ..Answer::plain("200 OK", metrics.text())
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::error::Error;
    use crate::pipeline::{Event, InHand, Turning};

    fn metrics() -> (Arc<Metrics>, Arc<std::sync::atomic::AtomicI64>) {
        let (clock, hand) = Clock::manual(1_767_225_600_000_000);
        (Arc::new(Metrics::new(clock, 1 << 30)), hand)
    }

    #[test]
    fn each_address_has_its_answer() {
        let (metrics, hand) = metrics();
        let check = |line: &str, status: &str, body: &str| {
            let answer = answer(line, &metrics);
            assert_eq!((answer.status, answer.body.as_str()), (status, body), "{line}");
        };
        check("GET /livez HTTP/1.1", "200 OK", "ok\n");
        check("GET /readyz HTTP/1.1", "503 Service Unavailable", "reading has not begun\n");
        let observe = metrics.observer();
        hand.fetch_add(700_000_000, std::sync::atomic::Ordering::SeqCst);
        let never = "ingestion stands still since 2026-01-01T00:00:00Z, for 700 s\n";
        check("GET /livez HTTP/1.1", "503 Service Unavailable", never);
        observe(&Event::Turned(Turning::Ingest));
        check("GET /livez HTTP/1.1", "200 OK", "ok\n");
        observe(&Event::Reading(InHand::default()));
        check("GET /readyz?verbose HTTP/1.0", "200 OK", "ok\n");
        hand.fetch_add(3_600_000_000, std::sync::atomic::Ordering::SeqCst);
        let still = "ingestion stands still since 2026-01-01T00:11:40Z, for 3600 s\n";
        check("GET /livez HTTP/1.1", "503 Service Unavailable", still);
        check("POST /metrics HTTP/1.1", "405 Method Not Allowed", "there is GET alone\n");
        let nothing = "there are /metrics, /livez and /readyz\n";
        for path in ["/", "/metrics/", "/livez2", "/../metrics", "*"] {
            check(&format!("GET {path} HTTP/1.1"), "404 Not Found", nothing);
        }
        for line in ["", "GET /metrics", "\x16\x03\x01", "GET /metrics HTTP/2.0", "GET  /metrics HTTP/1.1"] {
            check(line, "400 Bad Request", "this is not HTTP\n");
        }
    }

    #[test]
    fn who_cannot_listen_is_told_why() {
        let taken = Server::start("127.0.0.1:0", metrics().0).unwrap();
        let error = |listen: &str| Error::from(Server::start(listen, metrics().0).unwrap_err());
        let in_use = error(&taken.address().to_string());
        assert_eq!(in_use.kind().exit_code(), 2);
        insta::assert_snapshot!(in_use.render().replace(&taken.address().port().to_string(), "PORT"), @"
        error: metrics cannot be served at `127.0.0.1:PORT`
          caused by: Address already in use (os error 98)
          hint: another process listens there; name another port in `metrics.listen` or `--metrics`, or port 0 for one that is free
        ");
        insta::assert_snapshot!(error("192.0.2.1:9464").render(), @"
        error: metrics cannot be served at `192.0.2.1:9464`
          caused by: Cannot assign requested address (os error 99)
          hint: this machine has no such address; `127.0.0.1` is for this machine alone, `0.0.0.0` for everybody who reaches it
        ");
        drop(taken);
    }
}
