//! A proxy in front of a service, which loses requests and answers, refuses, cuts and hangs, as networks do.
//!
//! It speaks enough HTTP/1.1 to know where a message ends. Faults strike the requests that `matches` picks; everything
//! else passes through.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What happens to one request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection breaks before the server hears of it.
    LoseRequest,
    /// The server carries it out; the connection breaks before the answer arrives.
    LoseAnswer,
    /// The server carries it out; half of the answer arrives.
    CutAnswer,
    /// The server hears nothing, and the client gets this.
    Refuse(Canned),
    /// The server carries it out, and the client gets this.
    ApplyAndAnswer(Canned),
    /// Nothing comes back until the client gives up.
    Hang { applies: bool },
    /// The connection breaks at once, and the request gets to the server after all: just before the next one that
    /// `matches`, or just after.
    ArriveLate { before_next: bool },
}

/// An answer that no server gave.
#[derive(Debug, Clone)]
pub struct Canned {
    pub status: u16,
    pub content_type: &'static str,
    pub body: String,
}

impl Canned {
    /// As AWS services that speak JSON answer.
    pub fn json_service(status: u16, code: &str) -> Self {
        let body = format!(r#"{{"__type":"{code}","Message":"made up by a test"}}"#);
        Canned { status, content_type: "application/x-amz-json-1.1", body }
    }

    /// As S3 answers.
    pub fn s3(status: u16, code: &str) -> Self {
        let body = format!("<Error><Code>{code}</Code><Message>made up by a test</Message></Error>");
        Canned { status, content_type: "application/xml", body }
    }

    /// As a REST catalog answers.
    pub fn rest(status: u16, kind: &str) -> Self {
        let body = format!(r#"{{"error":{{"message":"made up by a test","type":"{kind}","code":{status}}}}}"#);
        Canned { status, content_type: "application/json", body }
    }

    /// As whatever stands in front of a service answers.
    pub fn page(status: u16) -> Self {
        Canned { status, content_type: "text/html", body: "<html>made up by a test</html>".to_string() }
    }

    fn bytes(&self) -> Vec<u8> {
        let Canned { status, content_type, body } = self;
        let length = body.len();
        format!("HTTP/1.1 {status} Made Up\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}")
            .into()
    }
}

type Matches = Box<dyn Fn(&str) -> bool + Send + Sync>;
type Judge = Box<dyn FnMut() -> Option<Fault> + Send>;

/// Runs until it is dropped.
pub struct Proxy {
    pub uri: String,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    upstream: String,
    matches: Matches,
    judge: Mutex<Judge>,
    /// Requests under way to the server, and whether they overtake the next one.
    late: Mutex<Vec<(Vec<u8>, bool)>>,
    struck: AtomicU32,
}

impl Proxy {
    /// `upstream` is `http://host:port`. `matches` sees a request's head and picks those that faults strike. Nothing
    /// happens to any until [`Proxy::plan`] or one of its like says so.
    pub async fn start(upstream: &str, matches: impl Fn(&str) -> bool + Send + Sync + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            upstream: upstream.strip_prefix("http://").unwrap().trim_end_matches('/').to_string(),
            matches: Box::new(matches),
            judge: Mutex::new(Box::new(|| None)),
            late: Mutex::new(Vec::new()),
            struck: AtomicU32::new(0),
        });
        let kept = shared.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(kept.clone().serve(client));
                while connections.try_join_next().is_some() {}
            }
        });
        Proxy { uri, shared, accepting }
    }

    /// These faults, one per matching request from now on, and then none.
    pub fn plan(&self, faults: impl IntoIterator<Item = Fault>) {
        let mut faults: VecDeque<Fault> = faults.into_iter().collect();
        self.judge(move || faults.pop_front());
    }

    /// The same fault for every matching request from now on.
    pub fn always(&self, fault: Fault) {
        self.judge(move || Some(fault.clone()));
    }

    /// Whatever this says of each matching request from now on.
    pub fn judge(&self, judge: impl FnMut() -> Option<Fault> + Send + 'static) {
        *self.shared.judge.lock().unwrap() = Box::new(judge);
        self.shared.struck.store(0, Ordering::SeqCst);
    }

    /// How many requests met a fault since the last plan.
    pub fn struck(&self) -> u32 {
        self.shared.struck.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// An address where nobody listens.
pub async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

pub fn glue_call(name: &'static str) -> impl Fn(&str) -> bool + Send + Sync + 'static {
    let target = format!("x-amz-target: awsglue.{}\r\n", name.to_ascii_lowercase());
    move |head| head.to_ascii_lowercase().contains(&target)
}

/// The request by which a REST catalog moves a table's head.
pub fn rest_commit(head: &str) -> bool {
    let line = head.lines().next().unwrap_or_default();
    line.starts_with("POST ") && line.contains("/tables/")
}

pub fn method(name: &'static str) -> impl Fn(&str) -> bool + Send + Sync + 'static {
    move |head| head.starts_with(name) && head[name.len()..].starts_with(' ')
}

impl Shared {
    async fn serve(self: Arc<Self>, mut client: TcpStream) {
        let mut server: Option<Connection> = None;
        let mut pending = Vec::new();
        while let Some(request) = read_message(&mut client, &mut pending, Body::OfRequest).await {
            let strikes = (self.matches)(&request.head);
            let fault = if strikes { (self.judge.lock().unwrap())() } else { None };
            if fault.is_some() {
                self.struck.fetch_add(1, Ordering::SeqCst);
            }
            let late: Vec<(Vec<u8>, bool)> =
                if strikes { self.late.lock().unwrap().drain(..).collect() } else { Vec::new() };
            self.deliver(&late, true).await;
            let Some(fate) = self.fate(fault, request, &mut server, &mut client).await else { return reset(client) };
            self.deliver(&late, false).await;
            match fate {
                Fate::Answer { bytes, closes } => {
                    if client.write_all(&bytes).await.is_err() || closes {
                        return;
                    }
                }
                Fate::Cut(bytes) => {
                    let _ = client.write_all(&bytes[..bytes.len() / 2]).await;
                    let _ = client.flush().await;
                    return;
                }
            }
        }
    }

    async fn deliver(&self, late: &[(Vec<u8>, bool)], before_next: bool) {
        for (bytes, _) in late.iter().filter(|(_, before)| *before == before_next) {
            Connection::open(&self.upstream).await.unwrap().ask(bytes, false).await;
        }
    }

    /// What the client gets; `None` is a broken connection.
    async fn fate(
        &self,
        fault: Option<Fault>,
        request: Message,
        server: &mut Option<Connection>,
        client: &mut TcpStream,
    ) -> Option<Fate> {
        match &fault {
            Some(Fault::LoseRequest) => return None,
            Some(Fault::Refuse(canned)) => return Some(Fate::Answer { bytes: canned.bytes(), closes: false }),
            Some(Fault::ArriveLate { before_next }) => {
                self.late.lock().unwrap().push((request.bytes, *before_next));
                return None;
            }
            Some(Fault::Hang { applies: false }) => {
                until_closed(client).await;
                return None;
            }
            _ => {}
        }
        let answer = self.forward(&request, server).await?;
        match fault {
            None => {
                let closes = answer.closes || request.closes;
                Some(Fate::Answer { bytes: answer.bytes, closes })
            }
            Some(Fault::CutAnswer) => Some(Fate::Cut(answer.bytes)),
            Some(Fault::ApplyAndAnswer(canned)) => Some(Fate::Answer { bytes: canned.bytes(), closes: false }),
            Some(Fault::Hang { .. }) => {
                until_closed(client).await;
                None
            }
            Some(_) => None,
        }
    }

    async fn forward(&self, request: &Message, server: &mut Option<Connection>) -> Option<Message> {
        let is_head = request.head.starts_with("HEAD ");
        // A kept connection may have been closed by the server meanwhile; a new one was not.
        if let Some(mut kept) = server.take()
            && let Some(answer) = kept.ask(&request.bytes, is_head).await
        {
            *server = (!answer.closes).then_some(kept);
            return Some(answer);
        }
        let mut fresh = Connection::open(&self.upstream).await?;
        let Some(answer) = fresh.ask(&request.bytes, is_head).await else {
            println!("the server behind the proxy hung up on `{}`", request.head.lines().next().unwrap_or_default());
            return None;
        };
        *server = (!answer.closes).then_some(fresh);
        Some(answer)
    }
}

enum Fate {
    Answer { bytes: Vec<u8>, closes: bool },
    Cut(Vec<u8>),
}

struct Connection {
    stream: TcpStream,
    pending: Vec<u8>,
}

impl Connection {
    async fn open(address: &str) -> Option<Self> {
        let stream = TcpStream::connect(address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Connection { stream, pending: Vec::new() })
    }

    async fn ask(&mut self, request: &[u8], is_head: bool) -> Option<Message> {
        self.stream.write_all(request).await.ok()?;
        let body = if is_head { Body::None } else { Body::OfAnswer };
        read_message(&mut self.stream, &mut self.pending, body).await
    }
}

/// The other side sees "connection reset" and not an orderly end.
fn reset(client: TcpStream) {
    let _ = client.set_zero_linger();
}

async fn until_closed(client: &mut TcpStream) {
    let mut byte = [0];
    while matches!(client.read(&mut byte).await, Ok(count) if count > 0) {}
}

struct Message {
    head: String,
    bytes: Vec<u8>,
    closes: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Body {
    None,
    OfRequest,
    OfAnswer,
}

/// One message; what was read past it stays in `pending`. `None` when the connection ends before a whole one arrived.
async fn read_message(stream: &mut TcpStream, pending: &mut Vec<u8>, body: Body) -> Option<Message> {
    let head_end = loop {
        if let Some(at) = pending.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(pending).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&pending[..head_end]).to_string();
    let header = |name: &str| {
        head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_ascii_lowercase())
        })
    };
    let status = head.split(' ').nth(1).unwrap_or_default();
    let has_none = body == Body::None || (body == Body::OfAnswer && (status == "204" || status == "304"));
    let mut closes = header("connection").is_some_and(|value| value == "close")
        || (body != Body::OfRequest && head.starts_with("HTTP/1.0"));
    let end = if has_none {
        head_end
    } else if header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        read_chunks(stream, pending, head_end).await?
    } else if let Some(length) = header("content-length") {
        head_end + length.parse::<usize>().ok()?
    } else if body == Body::OfAnswer {
        while stream.read_buf(pending).await.ok()? > 0 {}
        closes = true;
        pending.len()
    } else {
        head_end
    };
    fill(stream, pending, end).await?;
    let rest = pending.split_off(end);
    let bytes = std::mem::replace(pending, rest);
    Some(Message { head, bytes, closes })
}

/// Where the last chunk ends.
async fn read_chunks(stream: &mut TcpStream, pending: &mut Vec<u8>, mut at: usize) -> Option<usize> {
    loop {
        let line_end = loop {
            if let Some(end) = pending[at..].windows(2).position(|window| window == b"\r\n") {
                break at + end;
            }
            let wanted = pending.len() + 1;
            fill(stream, pending, wanted).await?;
        };
        let size = std::str::from_utf8(&pending[at..line_end]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        at = line_end + 2 + size + 2;
        fill(stream, pending, at).await?;
        if size == 0 {
            return Some(at);
        }
    }
}

async fn fill(stream: &mut TcpStream, pending: &mut Vec<u8>, wanted: usize) -> Option<()> {
    while pending.len() < wanted {
        if stream.read_buf(pending).await.ok()? == 0 {
            return None;
        }
    }
    Some(())
}
