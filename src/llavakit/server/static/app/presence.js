// Which answers are coming: each has a lock, held by the tab that reads it, and the browser takes it back however the tab
// ends. Browsers give locks to pages of https and of this machine; elsewhere what tabs tell one another has to do.

export const hasLocks = Boolean(navigator.locks);

function nameOf(answerId) {
  return `llavakit.answer.${answerId}`;
}

/** Do the work of an answer; other tabs can wait for its end. */
export function during(answerId, work) {
  return hasLocks ? navigator.locks.request(nameOf(answerId), work) : work();
}

/** Wait until no tab works on an answer. */
export function ended(answerId) {
  return navigator.locks.request(nameOf(answerId), () => {});
}
