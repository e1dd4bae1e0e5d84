//! What is between instances and servers: frames on their way, connections that break.

use std::collections::VecDeque;
use std::time::Duration;

use maru_directory::Millis;
use maru_protocol::{
    Body, FRAME_BYTES_MAX, Frame, FrameKind, Hello, Refusal, Request, Secret, SessionId, Welcome,
};

use super::super::Plant;
use super::{Checked, HOST_NAMES, QUARANTINE_MS, World};

/// A connection.
#[derive(Debug, Default)]
pub(super) struct Wire {
    instance: usize,
    /// Frames on their way; `None` is its end.
    pub(super) to_server: VecDeque<Option<Vec<u8>>>,
    pub(super) to_client: VecDeque<Option<Vec<u8>>>,
    /// Whose it is, as far as the server knows.
    pub(super) session: Option<SessionId>,
}

impl World {
    /// The server closes a session's connection.
    pub(super) fn hang_up(&mut self, session: SessionId, refusal: Option<Refusal>) {
        let Some(server) = &mut self.server else { return };
        let Some(wire) = server.wires.remove(&session) else { return };
        server.service.disconnected(Millis(self.now), session);
        if let Some(wire) = self.wires.get_mut(&wire) {
            wire.session = None;
            let refused = refusal.map(|refusal| encode(FrameKind::Refused, &refusal));
            wire.to_client.extend(refused.map(Some));
            wire.to_client.push_back(None);
            wire.to_server.clear();
        }
    }

    pub(super) fn connect(&mut self, index: usize) {
        let instance = &mut self.instances[index];
        if self.server.is_none() || instance.partitioned {
            return;
        }
        let Ok(resume) = instance.talk.hello() else {
            return;
        };
        let hello = Hello {
            instance: instance.name,
            host: HOST_NAMES[instance.host],
            budget_bytes: 0,
            resume,
            outside_writers: false,
        };
        self.last_wire += 1;
        let mut wire = Wire { instance: index, ..Wire::default() };
        wire.to_server.push_back(Some(encode(FrameKind::Hello, &hello)));
        self.wires.insert(self.last_wire, wire);
        (instance.wire, instance.greeted) = (Some(self.last_wire), Some(self.now));
    }

    pub(super) fn send_all(&mut self, index: usize, frames: impl IntoIterator<Item = Vec<u8>>) {
        let instance = &self.instances[index];
        // What is asked before the welcome is sent behind it: it is among what is unanswered.
        if instance.greeted.is_none()
            && let Some(wire) = instance.wire.and_then(|wire| self.wires.get_mut(&wire))
        {
            wire.to_server.extend(frames.into_iter().map(Some));
        }
    }

    pub(super) fn cut(&mut self, index: usize, lossy: bool) {
        let instance = &mut self.instances[index];
        instance.greeted = None;
        if let Some(wire) = instance.wire.take().and_then(|wire| self.wires.get_mut(&wire)) {
            if lossy {
                wire.to_server.clear();
            }
            wire.to_server.push_back(None);
            wire.to_client.clear();
        }
    }

    pub(super) fn converse(&mut self, index: usize) -> Checked {
        for _ in 0..64 {
            if !self.arrive_at_server(index)? && !self.arrive_at_client(index)? {
                break;
            }
        }
        Ok(())
    }

    /// The oldest frame of an instance arrives. Says whether there was one.
    pub(super) fn arrive_at_server(&mut self, index: usize) -> Checked<bool> {
        if self.server.is_none() || self.instances[index].partitioned {
            return Ok(false);
        }
        let mut wires = self.wires.iter_mut().filter(|(_, wire)| wire.instance == index);
        let next = wires.find_map(|(id, wire)| Some((*id, wire.to_server.pop_front()?)));
        let Some((id, frame)) = next else {
            return Ok(false);
        };
        if let Some(frame) = frame {
            self.serve(id, &frame)?;
            return Ok(true);
        }
        let session = self.wires.remove(&id).and_then(|wire| wire.session);
        if let Some((session, server)) = session.zip(self.server.as_mut()) {
            server.wires.remove(&session);
            server.service.disconnected(Millis(self.now), session);
            self.settle_and_check(None)?;
        }
        Ok(true)
    }

    pub(super) fn serve(&mut self, id: u64, frame: &[u8]) -> Checked {
        let frame = Frame::split(frame, FRAME_BYTES_MAX).map_err(|error| error.to_string())?;
        let Some(Frame { kind, body }) = frame else {
            return Err("a frame is incomplete".to_owned());
        };
        match kind {
            FrameKind::Hello => self.serve_hello(id, &decode(body)?),
            FrameKind::Request => self.serve_request(id, &decode(body)?),
            kind => Err(format!("a server is sent {kind:?}")),
        }
    }

    pub(super) fn serve_hello(&mut self, id: u64, hello: &Hello<'_>) -> Checked {
        self.secrets = self.secrets.wrapping_add(1);
        let fresh = Secret([self.secrets; 16]);
        let Some(wire) = self.wires.get(&id) else { return Ok(()) };
        let instance = &self.instances[wire.instance];
        let current = instance.wire == Some(id);
        let process = (instance.host == 0 && current).then_some(instance.process);
        let Some(server) = &mut self.server else { return Ok(()) };
        let welcome = server.service.hello(Millis(self.now), hello, fresh, process);
        match welcome {
            Ok(welcome) => {
                let session = welcome.session;
                if let Some(process) = process {
                    server.processes.insert(session, process);
                }
                // An older connection of the session ends.
                if let Some(old) = server.wires.insert(session, id).filter(|old| *old != id)
                    && let Some(old) = self.wires.get_mut(&old)
                {
                    old.session = None;
                    old.to_client.push_back(None);
                }
                if let Some(wire) = self.wires.get_mut(&id) {
                    wire.session = Some(session);
                    wire.to_client.push_back(Some(encode(FrameKind::Welcome, &welcome)));
                }
                self.settle_and_check(Some(session))
            }
            Err(refusal) => {
                if let Some(wire) = self.wires.get_mut(&id) {
                    wire.to_client.push_back(Some(encode(FrameKind::Refused, &refusal)));
                    wire.to_client.push_back(None);
                }
                self.settle_and_check(None)
            }
        }
    }

    pub(super) fn serve_request(&mut self, id: u64, request: &Request<'_>) -> Checked {
        let Some(session) = self.wires.get(&id).and_then(|wire| wire.session) else {
            return Ok(());
        };
        let Some(server) = &mut self.server else { return Ok(()) };
        let again = !server.heard.insert((session, request.seq));
        let forgotten = match self.plant {
            Some(Plant::PinReleasedTwice) => matches!(request.body, Body::Release { .. }),
            Some(Plant::ReplyReplayedWithNewEffect) => {
                !matches!(request.body, Body::Release { .. })
            }
            _ => false,
        };
        if again && forgotten {
            server.service.directory_mut().plant_forgotten_reply(session, request.seq);
        }
        let reply = server.service.apply(Millis(self.now), session, request);
        let reply = reply.map_err(|error| error.to_string())?;
        match (&request.body, &reply.result) {
            (Body::LetGo { session, .. }, Ok(_)) => drop(server.gone.insert(*session)),
            (Body::Goodbye, Ok(_)) => drop(server.gone.insert(session)),
            (Body::Reserve { .. }, Ok(_)) if self.plant == Some(Plant::GenerationNotBumped) => {
                server.service.directory_mut().plant_old_generation();
            }
            _ => {}
        }
        let over = matches!(
            (&request.body, &reply.result),
            (Body::Goodbye, Ok(_)) | (_, Err(Refusal::SessionEnded | Refusal::Claim { .. }))
        );
        if let Some(wire) = self.wires.get_mut(&id) {
            wire.to_client.push_back(Some(encode(FrameKind::Reply, &reply)));
        }
        if over {
            self.hang_up(session, None);
        }
        self.settle_and_check(Some(session))
    }

    /// A frame arrives at an instance. Says whether there was one.
    pub(super) fn arrive_at_client(&mut self, index: usize) -> Checked<bool> {
        let instance = &mut self.instances[index];
        if instance.partitioned || instance.stopped.is_some() {
            return Ok(false);
        }
        let Some(wire) = instance.wire.and_then(|wire| self.wires.get_mut(&wire)) else {
            return Ok(false);
        };
        let Some(frame) = wire.to_client.pop_front() else {
            return Ok(false);
        };
        let Some(frame) = frame else {
            self.cut(index, true);
            return Ok(true);
        };
        let frame = Frame::split(&frame, FRAME_BYTES_MAX).map_err(|error| error.to_string())?;
        let Some(frame) = frame else {
            return Err("a frame is incomplete".to_owned());
        };
        if let Some(greeted) = instance.greeted {
            let welcomed = match frame.kind {
                FrameKind::Welcome => {
                    let welcome: Welcome = decode(frame.body)?;
                    let (now, sent) = (Duration::from_millis(self.now), greeted);
                    let sent = Duration::from_millis(sent);
                    instance.confirmed(welcome.session, greeted, QUARANTINE_MS);
                    let frames = instance.talk.welcomed(now, sent, &welcome);
                    frames.map(|frames| frames.map(<[u8]>::to_vec).collect::<Vec<_>>()).ok()
                }
                _ => None,
            };
            match welcomed {
                Some(frames) => {
                    instance.greeted = None;
                    self.send_all(index, frames);
                }
                None => self.cut(index, true),
            }
        } else if instance.talk.received(frame).is_err() {
            self.cut(index, true);
        }
        self.take_outcomes(index)?;
        Ok(true)
    }

    pub(super) fn take_outcomes(&mut self, index: usize) -> Checked {
        let (instance, mut around) = self.around(index);
        let (verdicts, frames) = instance.take_outcomes(&mut around);
        self.send_all(index, frames);
        verdicts.into_iter().try_for_each(|verdict| self.judge(index, verdict))
    }
}

fn encode<T: serde::Serialize>(kind: FrameKind, message: &T) -> Vec<u8> {
    crate::rewrite::framed(kind, message)
}

fn decode<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Checked<T> {
    maru_protocol::decode(body).map_err(|error| error.to_string())
}
