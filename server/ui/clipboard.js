/* Copying; over plain HTTP from another machine, a browser leaves only the old way open. */

/** False where the browser does not let a page copy. @param {string} text */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyByCommand(text);
  }
}

function copyByCommand(text) {
  const onCopy = (event) => {
    event.preventDefault();
    event.clipboardData.setData("text/plain", text);
  };
  document.addEventListener("copy", onCopy);
  const isDone = document.execCommand("copy");
  document.removeEventListener("copy", onCopy);
  return isDone;
}
