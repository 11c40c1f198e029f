/* Loops over the 16-bit words of a cache that numpy needs several passes for. words.py says what they compute. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#if __GNUC__ >= 12 && !defined(__clang__)
#pragma GCC optimize("O2") /* O3 unrolls the lanes first, which takes twice as long; older compilers vectorise at O3 alone */
#endif

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

static uint16_t largest(const uint16_t *word, int64_t count) {
    uint16_t found[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int lane = 0; lane < LANES; lane++) found[lane] = word[i + lane] > found[lane] ? word[i + lane] : found[lane];
    for (; i < count; i++) found[0] = word[i] > found[0] ? word[i] : found[0];
    for (int lane = 1; lane < LANES; lane++) found[0] = found[lane] > found[0] ? found[lane] : found[0];
    return found[0];
}

/* add_up(words, table, bounds, slots, sums) -> bool: for every row, sums[slots[k]] += the table's values from bounds[k] to
 * bounds[k + 1]. words: 16 bits, rows by columns, of which only the columns must be adjacent; the others 64 bits and adjacent. */
static PyObject *add_up(PyObject *self, PyObject *args) {
    PyObject *object;
    Py_buffer words, table, bounds, slots, sums;
    if (!PyArg_ParseTuple(args, "Oy*y*y*w*", &object, &table, &bounds, &slots, &sums)) return NULL;
    int fits = 0, within = 1;
    if (PyObject_GetBuffer(object, &words, PyBUF_STRIDES) == 0) {
        const Py_ssize_t rows = words.ndim == 2 ? words.shape[0] : 0, pieces = slots.len / 8;
        const Py_ssize_t width = rows ? sums.len / 8 / rows : 0; /* of a row's sums */
        const uint64_t *value = table.buf;                       /* unsigned, as only that may wrap around */
        const int64_t *bound = bounds.buf, *slot = slots.buf;
        fits = words.ndim == 2 && words.itemsize == 2 && (words.shape[1] < 2 || words.strides[1] == 2) &&
               words.strides[0] % 2 == 0 && bounds.len / 8 == pieces + 1 && sums.len == rows * width * 8;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t k = 0; fits && k < pieces; k++)
            fits = 0 <= bound[k] && bound[k] <= bound[k + 1] && bound[k + 1] <= words.shape[1] && 0 <= slot[k] && slot[k] < width;
        for (Py_ssize_t row = 0; fits && within && row < rows; row++) {
            const uint16_t *word = (const uint16_t *)((const char *)words.buf + row * words.strides[0]);
            uint64_t *sum = (uint64_t *)sums.buf + row * width;
            /* found beforehand, as a comparison at every look-up takes three times as long */
            within = bound[0] == bound[pieces] || largest(word + bound[0], bound[pieces] - bound[0]) < table.len / 8;
            for (Py_ssize_t k = 0; within && k < pieces; k++) {
                const int64_t end = bound[k + 1];
                int64_t i = bound[k];
                uint64_t even = 0, odd = 0; /* two sums, as an addition has to wait for the one before it */
                for (; i + 2 <= end; i += 2) {
                    even += value[word[i]];
                    odd += value[word[i + 1]];
                }
                if (i < end) even += value[word[i]];
                sum[slot[k]] += even + odd;
            }
        }
        Py_END_ALLOW_THREADS
        PyBuffer_Release(&words);
    }
    PyBuffer_Release(&table);
    PyBuffer_Release(&bounds);
    PyBuffer_Release(&slots);
    PyBuffer_Release(&sums);
    if (PyErr_Occurred()) return NULL;
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "bounds, slots and sums must fit to the words");
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
