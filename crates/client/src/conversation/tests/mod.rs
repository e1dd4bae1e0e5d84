use maru_protocol::{
    Chunk, CommitItem, CommitOutcome, FRAME_BYTES_MAX, Generation, Key, Limits, Location,
    PAGE_ALIGN, RegionId, ReserveOutcome, Secret, SessionId, Topology, Visibility,
};

use super::*;

mod restart;

const LIMITS: Limits = Limits {
    lease_ms: 10_000,
    resume_ms: 1_000,
    frame_bytes_max: FRAME_BYTES_MAX,
    batch_max: 2,
    window: 4,
};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn welcome(session: u64, standing: Standing) -> Welcome {
    let visibility = Visibility::Coherent;
    let topology = Topology { address_space_bytes: 0, visibility, devices: Vec::new() };
    let (session, secret) = (SessionId(session), Secret([7; 16]));
    let (limits, checksums) = (LIMITS, false);
    Welcome { session, secret, standing, epoch: 1, limits, checksums, topology }
}

/// Welcomes a new connection; the numbers of the requests that are sent over it.
fn connect(talk: &mut Conversation, now: Duration, welcome: &Welcome) -> Vec<u64> {
    talk.welcomed(now, now, welcome).unwrap().map(|frame| request(frame).seq).collect()
}

/// In session 1, begun at 0.
fn begun() -> Conversation {
    let mut talk = Conversation::new(64);
    assert_eq!(talk.hello().unwrap(), None);
    assert_eq!(connect(&mut talk, ms(0), &welcome(1, Standing::New)), []);
    talk
}

fn session(talk: &Conversation) -> Arc<Session> {
    Arc::clone(talk.session().unwrap())
}

fn ask(talk: &mut Conversation, now: Duration, body: Body<'_>) -> u64 {
    assert!(talk.may_ask());
    talk.ask(now, None, body).unwrap().seq
}

fn request(frame: &[u8]) -> Request<'_> {
    let frame = Frame::split(frame, FRAME_BYTES_MAX).unwrap().unwrap();
    assert_eq!(frame.kind, FrameKind::Request);
    maru_protocol::decode(frame.body).unwrap()
}

fn reply(
    talk: &mut Conversation,
    seq: u64,
    result: Result<Answer, Refusal>,
) -> Result<(), ConnectionError> {
    let mut bytes = Vec::new();
    maru_protocol::encode(FrameKind::Reply, &Reply { seq, result }, &mut bytes).unwrap();
    talk.received(Frame::split(&bytes, FRAME_BYTES_MAX).unwrap().unwrap())
}

fn done(talk: &mut Conversation, seq: u64) {
    reply(talk, seq, Ok(Answer::Done)).unwrap();
}

fn location(page: u64) -> Location {
    let generation = Generation(page);
    Location::new(Handle { region: RegionId(0), offset: page * PAGE_ALIGN, generation }, 1)
}

fn chunk(page: u64) -> Chunk {
    Chunk { location: location(page), checksum: None, foreign: false }
}

/// The handles and pins of what is to be given back in this session.
fn orphans(talk: &mut Conversation, session: &Arc<Session>) -> Vec<(Handle, u32)> {
    let orphans = talk.take_orphans();
    assert!(orphans.iter().all(|orphan| Arc::ptr_eq(&orphan.session, session)));
    orphans.iter().map(|orphan| (orphan.handle, orphan.pins)).collect()
}

fn acquire(key: Key<'_>) -> Body<'_> {
    Body::Acquire { keys: vec![key], pins: 2, stop_at_miss: false }
}

fn acquired(page: u64) -> Answer {
    Answer::Acquired(vec![None, Some(chunk(page))])
}

#[test]
fn what_has_no_answer_is_sent_again_and_its_outcome_comes_once() {
    let mut talk = begun();
    let sent = session(&talk);
    let key = Key::new(b"key").unwrap();
    let first = talk.ask(ms(1), None, acquire(key)).unwrap();
    let (seq, frame) = (first.seq, first.frame.to_vec());
    let second = ask(&mut talk, ms(2), Body::Stats);
    let third = ask(&mut talk, ms(3), Body::Renew);
    done(&mut talk, second);
    assert!(talk.take_outcome(seq).is_none());
    assert_eq!(talk.hello().unwrap(), Some(sent.resume()));
    let resumed = welcome(1, Standing::Resumed);
    let again: Vec<Vec<u8>> =
        talk.welcomed(ms(4), ms(4), &resumed).unwrap().map(<[u8]>::to_vec).collect();
    assert_eq!(again[0], frame, "the very same");
    assert_eq!(again.iter().map(|frame| request(frame).seq).collect::<Vec<_>>(), [seq, third]);
    reply(&mut talk, seq, Ok(acquired(1))).unwrap();
    assert_eq!(talk.take_outcome(seq).unwrap().unwrap(), acquired(1));
    assert!(talk.take_outcome(seq).is_none());
    assert_eq!(connect(&mut talk, ms(5), &resumed), [third]);
    assert!(Arc::ptr_eq(&sent, &session(&talk)) && !sent.is_lost());
}

#[test]
fn of_two_replies_with_one_number_the_first_counts() {
    let mut talk = begun();
    let seq = ask(&mut talk, ms(1), Body::Renew);
    done(&mut talk, seq);
    reply(&mut talk, seq, Ok(Answer::Released(vec![ReleaseOutcome::NotHeld]))).unwrap();
    assert_eq!(talk.take_outcome(seq).unwrap().unwrap(), Answer::Done);
    // Nor do one that is later still, and one to nothing that was asked.
    done(&mut talk, seq);
    reply(&mut talk, seq + 1, Err(Refusal::SessionEnded)).unwrap();
    assert!(talk.take_outcome(seq).is_none());
}

#[test]
fn a_request_acknowledges_what_was_answered_before_it() {
    let mut talk = begun();
    let acked =
        |talk: &mut Conversation| request(talk.ask(ms(1), None, Body::Renew).unwrap().frame).acked;
    assert_eq!([acked(&mut talk), acked(&mut talk)], [0, 0]);
    done(&mut talk, 2);
    assert_eq!(acked(&mut talk), 0, "the first may still come");
    done(&mut talk, 1);
    assert_eq!(acked(&mut talk), 2);
}

#[test]
fn what_is_granted_to_nobody_is_given_back() {
    let key = Key::new(b"key").unwrap();
    let handle = location(1).handle;
    let reserve =
        Body::Reserve { keys: vec![key, key], page_bytes: 1, tag: 0, unless_being_written: false };
    let item = CommitItem { handle, length: 1, checksum: None };
    let commit = |pins| Body::Commit { items: vec![item], pins, names: Vec::new() };
    let reserved = vec![ReserveOutcome::Granted(location(1)), ReserveOutcome::Resident];
    let committed =
        Answer::Committed(vec![CommitOutcome::Superseded(chunk(1)), CommitOutcome::NotReserved]);
    let cases = [
        (acquire(key), acquired(1), vec![(handle, 2)]),
        (reserve, Answer::Reserved(reserved), vec![(handle, 0)]),
        (commit(1), committed.clone(), vec![(handle, 1)]),
        (commit(0), committed, vec![]),
        (Body::Renew, Answer::Done, vec![]),
    ];
    for (body, answer, granted) in cases {
        let mut talk = begun();
        let session = session(&talk);
        // The answer may come after the caller has gone, or while it is about to go.
        let late = ask(&mut talk, ms(1), body.clone());
        talk.abandon(late);
        assert!(!talk.has_orphans());
        assert_eq!(
            connect(&mut talk, ms(2), &welcome(1, Standing::Resumed)),
            [late],
            "it is still asked"
        );
        reply(&mut talk, late, Ok(answer.clone())).unwrap();
        assert_eq!(orphans(&mut talk, &session), granted);
        let hasty = ask(&mut talk, ms(3), body);
        reply(&mut talk, hasty, Ok(answer)).unwrap();
        talk.abandon(hasty);
        assert_eq!(orphans(&mut talk, &session), granted);
        // Once, and nobody hears of it.
        for seq in [late, hasty] {
            done(&mut talk, seq);
            assert!(talk.take_outcome(seq).is_none() && !talk.has_orphans());
        }
    }
}

#[test]
fn what_is_refused_to_nobody_is_forgotten() {
    let mut talk = begun();
    let seq = ask(&mut talk, ms(1), Body::Renew);
    talk.abandon(seq);
    reply(&mut talk, seq, Err(Refusal::WindowFull { window: 4 })).unwrap();
    assert!(!talk.has_orphans());
    assert_eq!(connect(&mut talk, ms(2), &welcome(1, Standing::Resumed)), []);
}

#[test]
fn a_lost_session_fails_what_is_pending_and_forgets_what_is_abandoned() {
    let mut talk = begun();
    let old = session(&talk);
    let key = Key::new(b"key").unwrap();
    let [answered, waiting, abandoned] = [1, 2, 3].map(|now| ask(&mut talk, ms(now), acquire(key)));
    reply(&mut talk, answered, Ok(acquired(1))).unwrap();
    talk.abandon(abandoned);
    assert_eq!(
        connect(&mut talk, ms(4), &welcome(2, Standing::New)),
        [],
        "all is of the old session"
    );
    assert!(old.is_lost() && !session(&talk).is_lost());
    assert_eq!((session(&talk).id(), session(&talk).epoch()), (SessionId(2), 1));
    assert_eq!(talk.take_outcome(answered).unwrap().unwrap(), acquired(1));
    assert!(matches!(talk.take_outcome(waiting), Some(Err(ClientError::SessionLost))));
    reply(&mut talk, abandoned, Ok(acquired(2))).unwrap();
    assert!(!talk.has_orphans());
    let asked = talk.ask(ms(5), Some(&old), Body::Renew);
    assert!(matches!(asked, Err(ClientError::SessionLost)));
    let current = session(&talk);
    let next = talk.ask(ms(5), Some(&current), Body::Renew).unwrap().seq;
    assert!(next > abandoned, "a number means one request");
}

#[test]
fn nothing_is_asked_before_a_session() {
    let mut talk = Conversation::new(64);
    assert!(!talk.may_ask() && talk.session().is_none());
    assert!(matches!(talk.ask(ms(0), None, Body::Renew), Err(ClientError::SessionLost)));
    assert!(
        talk.welcomed(ms(0), ms(0), &welcome(1, Standing::Resumed)).is_err(),
        "it has none to go on with"
    );
    assert!(talk.session().is_none());
}

#[test]
fn no_more_is_asked_than_the_server_can_remember() {
    let mut talk = begun();
    let asked: Vec<u64> = (0..4).map(|now| ask(&mut talk, ms(now), Body::Renew)).collect();
    assert!(!talk.may_ask(), "the window is full");
    asked[1..].iter().for_each(|seq| done(&mut talk, *seq));
    assert!(!talk.may_ask(), "the first may still come, so nothing is acknowledged");
    done(&mut talk, asked[0]);
    assert!(talk.may_ask(), "though nobody has taken an outcome");
}

#[test]
fn no_more_is_on_its_way_than_is_wished() {
    let mut talk = Conversation::new(2);
    connect(&mut talk, ms(0), &welcome(1, Standing::New));
    let first = ask(&mut talk, ms(1), Body::Renew);
    ask(&mut talk, ms(1), Body::Renew);
    assert!(!talk.may_ask());
    talk.abandon(first);
    assert!(!talk.may_ask(), "it is still on its way");
    done(&mut talk, first);
    assert!(talk.may_ask());
}

#[test]
fn a_request_that_cannot_be_sent_takes_no_number() {
    let mut talk = begun();
    let prefix = vec![0; FRAME_BYTES_MAX as usize];
    let asked = talk.ask(ms(1), None, Body::List { prefix: &prefix, cursor: 0, limit: 1 });
    assert!(matches!(asked, Err(ClientError::Unsendable(_))));
    assert_eq!(ask(&mut talk, ms(1), Body::Renew), 1);
    assert_eq!(connect(&mut talk, ms(2), &welcome(1, Standing::Resumed)), [1]);
}

/// Nine tenths of `resume_ms` are 900 ms.
#[test]
fn a_reply_confirms_the_session_as_of_when_its_request_was_sent() {
    let mut talk = begun();
    let session = session(&talk);
    let alive_until = |end: u64| {
        assert!(session.is_certainly_alive(ms(end - 1)), "dead before {end}");
        assert!(!session.is_certainly_alive(ms(end)), "alive at {end}");
    };
    alive_until(900);
    let [first, second, third] = [500, 600, 700].map(|now| ask(&mut talk, ms(now), Body::Renew));
    alive_until(900);
    done(&mut talk, second);
    alive_until(1_500);
    // An earlier one takes nothing back, and a refusal may be that there is no session.
    done(&mut talk, first);
    alive_until(1_500);
    reply(&mut talk, third, Err(Refusal::SessionEnded)).unwrap_err();
    alive_until(1_500);
    session.lose();
    assert!(!session.is_certainly_alive(ms(0)));
}

#[test]
fn what_is_sent_again_counts_from_then() {
    let mut talk = begun();
    let session = session(&talk);
    let seq = ask(&mut talk, ms(0), Body::Renew);
    assert!(!talk.is_hanging(ms(899), ms(1_000)) && talk.is_hanging(ms(900), ms(1_000)));
    connect(&mut talk, ms(800), &welcome(1, Standing::Resumed));
    assert!(!talk.is_hanging(ms(1_699), ms(1_000)) && talk.is_hanging(ms(1_700), ms(1_000)));
    done(&mut talk, seq);
    assert!(session.is_certainly_alive(ms(1_699)) && !session.is_certainly_alive(ms(1_700)));
    assert!(!talk.is_hanging(ms(10_000), ms(1_000)), "nothing is on its way");
}

/// The server may have said so of the connection alone.
#[test]
fn a_session_that_is_said_to_have_ended_is_asked_for_again() {
    let mut talk = begun();
    let [first, second] = [1, 2].map(|now| ask(&mut talk, ms(now), Body::Renew));
    let error = reply(&mut talk, first, Err(Refusal::SessionEnded)).unwrap_err();
    assert!(matches!(error, ConnectionError::SessionEnded), "{error}");
    assert!(matches!(talk.take_outcome(first), Some(Err(ClientError::SessionLost))));
    assert_eq!(talk.hello().unwrap(), Some(session(&talk).resume()));
    assert_eq!(connect(&mut talk, ms(3), &welcome(1, Standing::Resumed)), [second]);
}

#[test]
fn what_is_no_reply_closes_the_connection_and_changes_nothing() {
    let mut talk = begun();
    let seq = ask(&mut talk, ms(1), Body::Renew);
    let frame = |kind, body| Frame { kind, body };
    let error = talk.received(frame(FrameKind::Reply, b"\xFF")).unwrap_err();
    assert!(matches!(error, ConnectionError::Unreadable(_)), "{error}");
    let error = talk.received(frame(FrameKind::Event, b"")).unwrap_err();
    assert!(matches!(error, ConnectionError::Unexpected(FrameKind::Event)), "{error}");
    let mut refused = Vec::new();
    let refusal = Refusal::Malformed { reason: "too short".to_owned() };
    maru_protocol::encode(FrameKind::Refused, &refusal, &mut refused).unwrap();
    let refused = Frame::split(&refused, FRAME_BYTES_MAX).unwrap().unwrap();
    let error = talk.received(refused).unwrap_err();
    assert!(matches!(&error, ConnectionError::Refused(found) if *found == refusal), "{error}");
    assert_eq!(connect(&mut talk, ms(2), &welcome(1, Standing::Resumed)), [seq]);
}

/// It was gone on with, as the present one, and all pages were lost from the start.
#[test]
fn a_session_that_is_given_up_while_it_is_resumed_is_not_gone_on_with() {
    let mut talk = begun();
    let old = session(&talk);
    let seq = ask(&mut talk, ms(1), Body::Renew);
    assert!(talk.hello().unwrap().is_some());
    assert!(talk.give_up(&old));
    assert!(matches!(talk.take_outcome(seq), Some(Err(ClientError::SessionLost))));
    let resumed = talk.welcomed(ms(2), ms(1), &welcome(1, Standing::Resumed)).map(|_| ());
    assert!(matches!(resumed, Err(ClientError::SessionLost)));
    assert_eq!(talk.hello().unwrap(), None);
    connect(&mut talk, ms(3), &welcome(2, Standing::New));
    assert!(!talk.give_up(&old), "it is not the present one");
    assert!(!session(&talk).is_lost());
}

#[test]
fn a_lost_session_is_let_go_when_no_writable_page_is_out() {
    let mut talk = begun();
    let old = session(&talk);
    let pages = [Writing::begin(&old).unwrap(), Writing::begin(&old).unwrap()];
    assert!(talk.take_let_go().is_none(), "it is not lost");
    connect(&mut talk, ms(1), &welcome(2, Standing::New));
    assert!(matches!(Writing::begin(&old), Err(ClientError::SessionLost)));
    for page in pages {
        assert!(talk.take_let_go().is_none());
        drop(page);
    }
    let gone = talk.take_let_go().unwrap();
    let Resume { session, secret } = old.resume();
    assert_eq!(gone.let_go(), Body::LetGo { session, secret });
    assert!(talk.take_let_go().is_none());
    talk.keep_lost(gone);
    assert!(talk.take_let_go().is_some());
}

#[test]
fn goodbye_is_said_at_the_end_unless_a_writable_page_is_out() {
    let mut talk = begun();
    let session = session(&talk);
    let page = Writing::begin(&session).unwrap();
    assert!(talk.close().is_none() && session.is_lost());
    drop(page);
    let goodbye = talk.close().unwrap();
    assert!(talk.may_ask() && talk.ask(ms(1), Some(&goodbye), Body::Goodbye).is_ok());
    assert!(talk.is_closed() && talk.session().is_none());
    assert!(matches!(talk.hello(), Err(ClientError::SessionLost)));
    let welcomed = talk.welcomed(ms(2), ms(2), &welcome(2, Standing::New)).map(|_| ());
    assert!(matches!(welcomed, Err(ClientError::SessionLost)));
}

#[test]
fn what_is_alike_is_given_back_together_as_far_as_the_server_takes_it() {
    let mut talk = begun();
    let first = session(&talk);
    connect(&mut talk, ms(1), &welcome(2, Standing::New));
    let second = session(&talk);
    let give = |session: &Arc<Session>, page, pins| {
        let session = Arc::clone(session);
        Return { session, handle: location(page).handle, pins }
    };
    let mut queue = vec![
        give(&first, 1, 1),
        give(&second, 2, 1),
        give(&first, 3, 0),
        give(&first, 4, 1),
        give(&first, 5, 1),
    ];
    let handles = |pages: &[u64]| pages.iter().map(|page| location(*page).handle).collect();
    let expected = [
        (&first, Body::Release { handles: handles(&[1, 4]), pins: 1 }),
        (&second, Body::Release { handles: handles(&[2]), pins: 1 }),
        (&first, Body::Abort { handles: handles(&[3]) }),
        (&first, Body::Release { handles: handles(&[5]), pins: 1 }),
    ];
    for (session, body) in expected {
        let (found, asked, batch) = Return::next_batch(&mut queue).unwrap();
        assert!(Arc::ptr_eq(&found, session));
        assert_eq!(asked, body);
        assert!(batch.iter().all(|item| Arc::ptr_eq(&item.session, session)));
    }
    assert!(Return::next_batch(&mut queue).is_none());
}
