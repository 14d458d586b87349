/* The storage of the tab: a reload changes nothing, and closing the tab forgets it.

   A browser may forbid it; then the page works, and remembers nothing.
*/

/** @param {string} name @returns {string | null} */
export function read(name) {
  try {
    return sessionStorage.getItem(name);
  } catch {
    return null;
  }
}

/** False where there is no room for it. @param {string} name @param {string} value */
export function write(name, value) {
  try {
    sessionStorage.setItem(name, value);
    return true;
  } catch {
    return false;
  }
}
