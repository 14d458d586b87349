/* Copying. Over plain HTTP from another machine, browsers only support the old way. */

/** Returns false if the browser does not let the page copy. @param {string} text */
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
