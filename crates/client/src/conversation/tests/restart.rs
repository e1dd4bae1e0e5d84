//! The server was restarted, and is told what its session holds.

use maru_protocol::{PinClaim, ReservationClaim};

use super::*;

const KEY: Key<'_> = match Key::new(b"key") {
    Ok(key) => key,
    Err(_) => panic!(),
};

fn granted(talk: &mut Conversation, now: u64, page: u64) {
    let (keys, page_bytes, tag) = (vec![KEY], 1, 9);
    let body = Body::Reserve { keys, page_bytes, tag, unless_being_written: false };
    let seq = ask(talk, ms(now), body);
    let granted = ReserveOutcome::Granted(location(page));
    reply(talk, seq, Ok(Answer::Reserved(vec![granted]))).unwrap();
    talk.take_outcome(seq).unwrap().unwrap();
}

fn pinned(talk: &mut Conversation, now: u64, page: u64) {
    let seq = ask(talk, ms(now), acquire(KEY));
    reply(talk, seq, Ok(acquired(page))).unwrap();
    talk.take_outcome(seq).unwrap().unwrap();
}

/// A conversation that pins page 1 twice and page 2 twice, and has reserved pages 3 and 4.
fn holding() -> Conversation {
    let mut talk = begun();
    pinned(&mut talk, 1, 1);
    pinned(&mut talk, 2, 2);
    granted(&mut talk, 3, 3);
    granted(&mut talk, 4, 4);
    talk
}

/// All that is claimed over one connection: pins, reservations, commits; and the bodies that follow.
#[derive(Debug, Default, PartialEq)]
struct Claimed {
    pins: Vec<(Handle, u32)>,
    reservations: Vec<(Handle, u64, Option<u64>)>,
    commits: Vec<u64>,
    then: Vec<u64>,
}

/// It went on to believe itself alive by the times of the server before, which had become shorter.
#[test]
fn a_session_that_relied_on_other_times_is_over() {
    let mut talk = holding();
    let session = Arc::clone(talk.session().unwrap());
    let mut welcome = welcome(1, Standing::Restored);
    welcome.limits.lease_ms /= 2;
    let again = talk.welcomed(ms(9), ms(9), &welcome).map(|_| ());
    assert!(matches!(again, Err(ClientError::SessionLost)));
    assert!(session.is_lost() && !session.is_certainly_alive(ms(9)));
    assert!(talk.hello().unwrap().is_none(), "the next is a new one");
}

fn restored(talk: &mut Conversation, now: u64) -> Claimed {
    let welcome = welcome(1, Standing::Restored);
    let frames: Vec<Vec<u8>> =
        talk.welcomed(ms(now), ms(now), &welcome).unwrap().map(<[u8]>::to_vec).collect();
    let mut claimed = Claimed::default();
    let mut ended = false;
    for frame in &frames {
        let Request { seq, body, .. } = request(frame);
        let Body::Claim { pins, reservations, commits, last } = body else {
            assert!(ended, "claims come first");
            claimed.then.push(seq);
            continue;
        };
        assert!(!ended, "the last is the last");
        assert!(pins.len() + reservations.len() <= LIMITS.batch_max as usize);
        claimed.pins.extend(pins.iter().map(|PinClaim { handle, count }| (*handle, *count)));
        let reservations = reservations.iter();
        claimed.reservations.extend(reservations.map(|held| {
            let ReservationClaim { handle, key, tag, committing } = *held;
            assert_eq!(key, KEY);
            (handle, tag, committing)
        }));
        claimed.commits.extend(commits);
        ended = last;
    }
    assert!(ended);
    claimed.pins.sort_unstable();
    claimed.reservations.sort_unstable();
    claimed
}

fn handles(pages: &[u64]) -> Vec<Handle> {
    pages.iter().map(|page| location(*page).handle).collect()
}

fn pins(pages: &[(u64, u32)]) -> Vec<(Handle, u32)> {
    pages.iter().map(|(page, count)| (location(*page).handle, *count)).collect()
}

fn reservations(pages: &[u64]) -> Vec<(Handle, u64, Option<u64>)> {
    pages.iter().map(|page| (location(*page).handle, 9, None)).collect()
}

#[test]
fn all_that_is_held_is_claimed_before_anything_else() {
    let mut talk = holding();
    let waiting = ask(&mut talk, ms(5), acquire(KEY));
    let claimed = restored(&mut talk, 6);
    assert_eq!(claimed.pins, pins(&[(1, 2), (2, 2)]));
    assert_eq!(claimed.reservations, reservations(&[3, 4]));
    assert_eq!((claimed.commits, claimed.then), (vec![], vec![waiting]));
    let session = session(&talk);
    assert!(!session.is_lost(), "pages stay as they are");
    reply(&mut talk, waiting, Ok(acquired(1))).unwrap();
    assert_eq!(talk.pins().find(|pin| pin.handle == location(1).handle).unwrap().count, 4);
}

#[test]
fn who_holds_nothing_says_so() {
    let mut talk = begun();
    assert_eq!(restored(&mut talk, 1), Claimed::default());
}

/// The server may have been killed before it came, or after.
#[test]
fn what_was_on_its_way_back_is_back() {
    let mut talk = holding();
    let release = Body::Release { handles: handles(&[1, 2]), pins: 1 };
    let release = ask(&mut talk, ms(5), release);
    let abort = ask(&mut talk, ms(6), Body::Abort { handles: handles(&[3]) });
    talk.abandon(abort);
    let claimed = restored(&mut talk, 7);
    assert_eq!(claimed.pins, pins(&[(1, 1), (2, 1)]));
    assert_eq!((claimed.reservations, claimed.then), (reservations(&[4]), vec![]));
    let released = Answer::Released(vec![ReleaseOutcome::Released; 2]);
    assert_eq!(talk.take_outcome(release).unwrap().unwrap(), released);
}

#[test]
fn a_commit_without_an_answer_is_named_and_sent_again() {
    let mut talk = holding();
    let item = |page: u64| CommitItem { handle: location(page).handle, length: 1, checksum: None };
    let commit = |page, pins| Body::Commit { items: vec![item(page)], pins, names: Vec::new() };
    let plain = ask(&mut talk, ms(5), commit(3, 0));
    let pinning = ask(&mut talk, ms(6), commit(4, 1));
    let claimed = restored(&mut talk, 7);
    let three = (location(3).handle, 9, Some(plain));
    let four = (location(4).handle, 9, Some(pinning));
    assert_eq!(claimed.reservations, [three, four]);
    assert_eq!((claimed.commits, claimed.then), (vec![pinning], vec![plain, pinning]));
    let committed = |page| Ok(Answer::Committed(vec![CommitOutcome::Superseded(chunk(page))]));
    reply(&mut talk, plain, committed(1)).unwrap();
    reply(&mut talk, pinning, committed(2)).unwrap();
    assert_eq!(talk.reservations().count(), 0);
    let counts: Vec<u32> = talk.pins().map(|pin| pin.count).collect();
    assert_eq!(counts.iter().sum::<u32>(), 5, "the one that pins pins");
}

/// The server may have heard of it before it was killed. If it has not, the page must not be anybody's.
#[test]
fn a_page_that_is_suspected_is_claimed_until_that_is_answered() {
    let mut talk = holding();
    let suspect = ask(&mut talk, ms(5), Body::Suspect { handles: handles(&[1, 3]) });
    let claimed = restored(&mut talk, 6);
    assert_eq!((claimed.reservations, claimed.then), (reservations(&[3, 4]), vec![suspect]));
    done(&mut talk, suspect);
    assert_eq!(talk.reservations().collect::<Vec<_>>(), handles(&[4]));
    assert_eq!(talk.pins().count(), 2, "what is pinned stays pinned");
}

#[test]
fn claims_that_were_cut_off_are_made_anew() {
    let mut talk = holding();
    let first = restored(&mut talk, 5);
    assert_eq!(restored(&mut talk, 6), first);
    pinned(&mut talk, 7, 2);
    let later = restored(&mut talk, 8);
    assert_eq!(later.pins, pins(&[(1, 2), (2, 4)]));
    assert_eq!(connect(&mut talk, ms(9), &welcome(1, Standing::Resumed)), []);
}

#[test]
fn a_session_whose_claims_are_refused_is_over() {
    for refusal in [Refusal::Claim { reason: String::new() }, Refusal::ClaimFirst] {
        let mut talk = holding();
        let old = session(&talk);
        let waiting = ask(&mut talk, ms(5), Body::Renew);
        restored(&mut talk, 6);
        let error = reply(&mut talk, waiting + 1, Err(refusal)).unwrap_err();
        assert!(matches!(error, ConnectionError::SessionEnded));
        connect(&mut talk, ms(7), &welcome(2, Standing::New));
        assert!(old.is_lost());
        assert!(matches!(talk.take_outcome(waiting), Some(Err(ClientError::SessionLost))));
        assert_eq!((talk.pins().count(), talk.reservations().count()), (0, 0));
    }
}

#[test]
fn what_is_answered_is_what_is_held() {
    let mut talk = holding();
    let release = ask(&mut talk, ms(5), Body::Release { handles: handles(&[1, 2, 7]), pins: 2 });
    let [yes, no] = [ReleaseOutcome::Released, ReleaseOutcome::NotHeld];
    reply(&mut talk, release, Ok(Answer::Released(vec![yes, no, no]))).unwrap();
    let item = |page: u64| CommitItem { handle: location(page).handle, length: 1, checksum: None };
    let commit = ask(
        &mut talk,
        ms(6),
        Body::Commit { items: vec![item(3), item(4)], pins: 0, names: Vec::new() },
    );
    let outcomes = vec![CommitOutcome::Committed(chunk(3)), CommitOutcome::BadLength];
    reply(&mut talk, commit, Ok(Answer::Committed(outcomes))).unwrap();
    let held: Vec<Handle> = talk.pins().map(|pin| pin.handle).collect();
    assert_eq!(held, handles(&[2]));
    assert_eq!(talk.reservations().collect::<Vec<_>>(), handles(&[4]));
    assert!(talk.is_answered());
}
