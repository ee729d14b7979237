//! What a process says of itself over HTTP.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// Where a process answers, as its log says.
pub fn address_in(log: &str) -> Option<SocketAddr> {
    let line = log.lines().find(|line| line.contains("metrics are served"))?;
    line.split("address=").nth(1)?.trim().parse().ok()
}

/// The status and the body of an answer.
pub fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.split("\r\n").next()).unwrap();
    assert_eq!(length.parse::<usize>().unwrap(), body.len());
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_string())
}

/// Every number by its name with its labels.
pub fn scrape(address: SocketAddr) -> BTreeMap<String, f64> {
    let (status, text) = ask(address, "GET", "/metrics");
    assert_eq!(status, 200, "{text}");
    let numbers = text.lines().filter(|line| !line.starts_with('#'));
    let split = |line: &str| line.rsplit_once(' ').map(|(name, number)| (name.to_string(), number.parse().unwrap()));
    numbers.map(|line| split(line).unwrap()).collect()
}
