/* Loops over the 16-bit words of a cache that numpy needs several passes for. words.py says what they compute. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

enum { LANES = 8, ROWS = 256 }; /* 32 bits hold LANES sums over ROWS rows, and their sums */

/* fletcher_sums(words) -> (sum of (n - i) * words[i], sum of words[i]) for at most 2**19 words, so that 64 bits hold them.
 *
 * The words are rows of LANES columns, whose sums a compiler makes side by side. */
static PyObject *fletcher_sums(PyObject *self, PyObject *args) {
    Py_buffer words;
    if (!PyArg_ParseTuple(args, "y*", &words)) return NULL;
    Py_ssize_t count = words.len / 2;
    if (words.len % 2 || count > 1 << 19) {
        PyBuffer_Release(&words);
        PyErr_SetString(PyExc_ValueError, "at most 2**19 whole words");
        return NULL;
    }
    uint64_t sum = 0, sum_of_sums = 0;
    Py_BEGIN_ALLOW_THREADS
    const uint16_t *word = words.buf;
    Py_ssize_t i = 0;
    while (count - i >= LANES) {
        Py_ssize_t rows = (count - i) / LANES < ROWS ? (count - i) / LANES : ROWS;
        uint32_t sums[LANES] = {0}, sums_of_sums[LANES] = {0};
        for (Py_ssize_t row = 0; row < rows; row++, i += LANES)
            for (int lane = 0; lane < LANES; lane++) {
                sums_of_sums[lane] += sums[lane];
                sums[lane] += word[i + lane];
            }
        sum_of_sums += (uint64_t)(rows * LANES) * sum;
        for (int lane = 0; lane < LANES; lane++) {
            sum_of_sums += (uint64_t)LANES * sums_of_sums[lane] + (uint64_t)(LANES - lane) * sums[lane];
            sum += sums[lane];
        }
    }
    for (; i < count; i++) {
        sum += word[i];
        sum_of_sums += sum;
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&words);
    return Py_BuildValue("KK", (unsigned long long)sum_of_sums, (unsigned long long)sum);
}

/* add_up(words, table, starts, sums) -> bool: sums[k] = the sum of table[word] from starts[k] up to starts[k + 1] or the end */
static PyObject *add_up(PyObject *self, PyObject *args) {
    Py_buffer words, table, starts, sums;
    if (!PyArg_ParseTuple(args, "y*y*y*w*", &words, &table, &starts, &sums)) return NULL;
    const uint16_t *word = words.buf;
    const uint64_t *value = table.buf; /* unsigned, as only that may wrap around */
    const int64_t *start = starts.buf;
    uint64_t *sum = sums.buf;
    Py_ssize_t count = words.len / 2, pieces = starts.len / 8;
    int fits = sums.len / 8 == pieces, within = 1;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t piece = 0; piece < pieces; piece++)
        fits = fits && 0 <= start[piece] && start[piece] <= (piece + 1 < pieces ? start[piece + 1] : count);
    uint16_t largest = 0; /* found beforehand, as a comparison at every look-up takes three times as long */
    for (Py_ssize_t i = 0; i < count; i++) largest = word[i] > largest ? word[i] : largest;
    within = !count || largest < table.len / 8;
    for (Py_ssize_t piece = 0; fits && within && piece < pieces; piece++) {
        const int64_t end = piece + 1 < pieces ? start[piece + 1] : count;
        uint64_t total = 0;
        for (int64_t i = start[piece]; i < end; i++) total += value[word[i]];
        sum[piece] = total;
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&words);
    PyBuffer_Release(&table);
    PyBuffer_Release(&starts);
    PyBuffer_Release(&sums);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "starts and sums must fit to the words");
        return NULL;
    }
    return PyBool_FromLong(within);
}

static PyMethodDef methods[] = {
    {"fletcher_sums", fletcher_sums, METH_VARARGS, NULL},
    {"add_up", add_up, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_words", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__words(void) { return PyModule_Create(&module); }
